"""vLLM's options as the core's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.config import SchedulerConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def core_config(config: VllmConfig, block_size: int, *, keeps_kv_events: bool) -> SchedulerConfig:
    """The configuration for a core that schedules as vLLM is told to.

    Raises ValueError, naming the value and the limit, for what the core cannot do.
    """
    scheduler, cache = config.scheduler_config, config.cache_config
    return SchedulerConfig(
        max_num_seqs=scheduler.max_num_active_seqs or scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_scheduled_tokens or scheduler.max_num_batched_tokens,
        max_model_len=config.model_config.max_model_len,
        block_size=block_size,
        num_blocks=cache.num_gpu_blocks,  # both count block 0, which is padding (vLLM: the null block)
        enable_prefix_caching=cache.enable_prefix_caching,
        long_prefill_token_threshold=scheduler.long_prefill_token_threshold,
        max_long_partial_prefills=scheduler.max_num_seqs,
        enable_priority_preemption=scheduler.policy == "priority",
        preprocess_timeout=float("inf"),  # vLLM waits for a grammar as long as it takes
        keeps_kv_events=keeps_kv_events,
    )
