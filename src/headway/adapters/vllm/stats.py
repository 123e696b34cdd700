"""What vLLM reports of its scheduler: statistics of a step, and of the prefix cache since the step before."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.stats import PrefixCacheStats, SchedulerStats

from headway.scheduler import Scheduler


class Stats:
    """Makes vLLM's statistics out of the core's numbers."""

    def __init__(self, core: Scheduler) -> None:
        self._core = core
        self._reported = core.snapshot()
        self._was_reset = False

    def cache_was_reset(self) -> None:
        """The prefix cache has been emptied: the next report says so."""
        self._was_reset = True

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

    def _prefix_cache(self, now: Any) -> PrefixCacheStats:
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
