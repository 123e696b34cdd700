"""The sizes of Headway's scheduler for an engine of FastDeploy."""

from __future__ import annotations

from typing import Any

from headway.config import Role, SchedulerConfig

RESERVATION_TIMEOUT = 600.0  # seconds; FastDeploy itself waits for ever
PREPROCESS_TIMEOUT = 600.0


def scheduler_config(config: Any, max_num_seqs: int, role: str, is_measured: bool) -> SchedulerConfig:
    """The configuration of Headway's scheduler. config: an FDConfig of FastDeploy. is_measured: whether its number of
    blocks is the device's, and no guess; see `reset_cache_config`.

    - Block 0 is padding in Headway. FastDeploy uses it. So there is one block more here, and FastDeploy's block n is
      block n + 1 here.
    - FastDeploy's worker runs free: it decodes as long as it has blocks. So a decoding request gets blocks ahead, for
      up to `block_size` tokens that its worker has made and the scheduler has not seen.
    - These tokens are no work of one step. The budget is greater by them, and FastDeploy's own budget is kept where
      the chunks are sent (see `portions`).
    - FastDeploy decides where an answer ends. So the limits are one token higher here: the core never ends a request.

    Raises ValueError for sizes that could not work.
    """
    block_size = config.cache_config.block_size
    max_model_len = config.model_config.max_model_len + 1
    ahead = 0 if Role(role) is Role.PREFILL else block_size
    num_blocks = int(config.cache_config.total_block_num) + 1
    if not is_measured:  # a guess may be too small for one request
        num_blocks = max(num_blocks, -(-max_model_len // block_size) + 1)
    return SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens + max_num_seqs * (ahead + 1),
        block_size=block_size,
        role=Role(role),
        enable_prefix_caching=bool(config.cache_config.enable_prefix_caching),
        enable_output_caching=bool(config.cache_config.enable_output_caching),
        num_speculative_tokens=ahead,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        quarantine_slots=True,
        preprocess_timeout=PREPROCESS_TIMEOUT,
        reservation_timeout=RESERVATION_TIMEOUT,
        send_timeout=RESERVATION_TIMEOUT,
    )
