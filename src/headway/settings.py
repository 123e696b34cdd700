"""Settings by name, as `LLM` and `AsyncLLM` take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypedDict

from headway.config import EngineConfig, KVTransport, ReserveName, Role, SchedulerName, VictimName
from headway.spelling import near


class EngineSettings(TypedDict, total=False):
    """The fields of `EngineConfig`, which describes them, but for the model: here for editors and type checkers."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    role: Role
    enable_prefix_caching: bool
    enable_output_caching: bool
    max_num_partial_prefills: int
    long_prefill_token_threshold: int | None
    max_long_partial_prefills: int
    deterministic: bool
    deterministic_chunk_size: int
    encoder_cache_size: int | None
    num_speculative_tokens: int
    reserve: ReserveName
    max_bypass: int
    ageing_seconds: float
    victim: VictimName
    enable_priority_preemption: bool
    preprocess_timeout: float
    reservation_timeout: float
    hold_timeout: float
    send_timeout: float
    lend_timeout: float
    receive_timeout: float
    max_lent_blocks: int | None
    max_receiving_blocks: int | None
    tokenizer: str | None
    revision: str | None
    trust_remote_code: bool
    served_model_name: str | None
    scheduler: SchedulerName | None
    device: str | None
    dtype: str | None
    attention_backend: str
    tensor_parallel_size: int
    enforce_eager: bool
    max_model_len: int | None
    num_blocks: int | None
    kv_cache_memory_gb: float
    gpu_memory_utilization: float
    max_waiting: int
    async_scheduling: bool
    step_timeout: float
    seed: int
    kv_listen: str | None
    kv_peers: str
    kv_secret: str | None
    kv_transport: KVTransport
    kv_events_config: str | None


def engine_config(model: str | None, settings: EngineSettings) -> EngineConfig:
    """The configuration with these settings; None for device or dtype is "auto", the default of other engines. Raises
    TypeError for a name that is no setting, and ValueError for a value that cannot work."""
    known = [field.name for field in fields(EngineConfig) if field.name != "model"]
    for name in settings:
        if name not in known:
            close = near(name, known)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"LLM has no setting {name!r}; {hint}")
    given: Mapping[str, Any] = settings
    automatic = {name: "auto" for name in ("device", "dtype") if given.get(name, "") is None}
    return EngineConfig(model=model, **{**given, **automatic})
