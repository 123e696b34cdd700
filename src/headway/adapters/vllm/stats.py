"""What vLLM reports of its scheduler: statistics of a step, and of the prefix cache since the step before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.perf import ModelMetrics
from vllm.v1.metrics.stats import PrefixCacheStats, SchedulerStats

from headway.scheduler import Scheduler, Snapshot

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.metrics.perf import PerfStats
    from vllm.v1.outputs import ModelRunnerOutput


class Stats:
    """Makes vLLM's statistics out of the core's numbers."""

    def __init__(self, core: Scheduler, config: VllmConfig) -> None:
        self._core = core
        self._model = ModelMetrics(config) if config.observability_config.enable_mfu_metrics else None
        self._reported = core.snapshot()
        self._was_reset = False

    def cache_was_reset(self) -> None:
        """The prefix cache has been emptied: the next report says so."""
        self._was_reset = True

    def of_step(self, order: SchedulerOutput, result: ModelRunnerOutput) -> SchedulerStats:
        """The statistics after a step."""
        return self.report(cudagraph_stats=result.cudagraph_stats, perf_stats=self._performance(order))

    def report(self, **more: Any) -> SchedulerStats:
        """The statistics as things stand. more: fields that others know."""
        now = self._core.snapshot()
        return SchedulerStats(
            num_running_reqs=now.num_running,
            num_waiting_reqs=now.num_waiting,
            num_skipped_waiting_reqs=now.num_preparing,
            kv_cache_usage=now.kv_cache_usage,
            prefix_cache_stats=self._prefix_cache(now),
            **more,
        )

    def _performance(self, order: SchedulerOutput) -> PerfStats | None:
        if self._model is None or not self._model.is_enabled():
            return None
        return self._model.get_step_perf_stats_per_gpu(order)

    def _prefix_cache(self, now: Snapshot) -> PrefixCacheStats:
        before, self._reported = self._reported, now
        was_reset, self._was_reset = self._was_reset, False
        return PrefixCacheStats(
            reset=was_reset,
            requests=now.num_prefix_queries - before.num_prefix_queries,
            queries=now.num_prefix_query_tokens - before.num_prefix_query_tokens,
            hits=now.num_prefix_hit_tokens - before.num_prefix_hit_tokens,
            preempted_requests=now.num_resumed_queries - before.num_resumed_queries,
            preempted_queries=now.num_resumed_query_tokens - before.num_resumed_query_tokens,
            preempted_hits=now.num_resumed_hit_tokens - before.num_resumed_hit_tokens,
        )
