"""What a user can set, validated in one place.

Two records: `EngineConfig` is what a person writes (some fields `None`: decided when the model is loaded), and
`SchedulerConfig` is what the core needs (every field decided). Nothing here imports more than the standard library,
because the pure core reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

SchedulerName = Literal["v0", "v1", "v2"]


class Role(StrEnum):
    """What an engine does with a request: both phases, only the prefill (P), or only the decode (D)."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"


def _at_least(name: str, value: int | float, minimum: int | float) -> None:
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one scheduler.

    max_num_seqs: slots, that is requests that may run at once.
    max_num_batched_tokens: tokens that one step may compute, over all requests; at least `max_num_seqs`, so that
        every running request can decode in every step.
    max_model_len: tokens of the longest request, prompt and output together.
    block_size: tokens in one KV-cache block, a power of two.
    num_blocks: blocks of the pool, counting block 0, which is padding and never handed out.
    enable_prefix_caching: reuse the blocks of equal prompt prefixes.
    role: which phases this engine runs; a prefill engine computes the prompt and one token.

    Raises ValueError, naming the value and the limit, for anything that could not work.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 2048
    block_size: int = 16
    num_blocks: int = 4096
    enable_prefix_caching: bool = True
    role: Role = Role.MIXED

    def __post_init__(self) -> None:
        _at_least("max_num_seqs", self.max_num_seqs, 1)
        _at_least("max_model_len", self.max_model_len, 2)
        _at_least("block_size", self.block_size, 1)
        if self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size must be a power of two, got {self.block_size}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): every running request decodes one token in a step"
            )
        if self.num_blocks - 1 < self.blocks_per_request:
            raise ValueError(
                f"num_blocks ({self.num_blocks}, of which one is padding) cannot hold one request of max_model_len "
                f"({self.max_model_len}) tokens: it needs {self.blocks_per_request} blocks of {self.block_size}"
            )
        if self.num_blocks * self.block_size >= 2**31:
            raise ValueError(
                f"num_blocks ({self.num_blocks}) x block_size ({self.block_size}) must be below 2^31 tokens, the range "
                f"of the int32 arrays that address the pool"
            )

    @property
    def blocks_per_request(self) -> int:
        """Blocks that the longest request needs: the width of a block table."""
        return self.blocks_for(self.max_model_len)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What a person sets to run a model. `None` means: decided when the model is loaded.

    model: a local folder or a hub id; None is the embedded default model.
    scheduler: which resource manager; None follows the environment switches (see `managers.choose_scheduler`).
    device, dtype: as torch names them; "auto" takes CUDA where present, and the dtype of the checkpoint.
    num_blocks: blocks of the KV cache; None computes it from `kv_cache_memory_gb` on a CPU and from
        `gpu_memory_utilization` on CUDA.
    max_waiting: requests that may be queued beyond `max_num_seqs` before new ones are refused.
    step_timeout: seconds after which the watchdog gives up a step of the device.
    """

    model: str | None = None
    tokenizer: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    served_model_name: str | None = None
    scheduler: SchedulerName | None = None
    role: Role = Role.MIXED
    device: str = "auto"
    dtype: str = "auto"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int | None = None
    block_size: int = 16
    num_blocks: int | None = None
    kv_cache_memory_gb: float = 1.0
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    max_waiting: int = 4096
    step_timeout: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("max_waiting", self.max_waiting, 0)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}")
        if not self.kv_cache_memory_gb > 0:
            raise ValueError(f"kv_cache_memory_gb must be above 0, got {self.kv_cache_memory_gb}")
        if not self.step_timeout > 0:
            raise ValueError(f"step_timeout must be above 0 seconds, got {self.step_timeout}")
        if self.scheduler not in (None, "v0", "v1", "v2"):
            raise ValueError(f"scheduler must be v0, v1 or v2, got {self.scheduler!r}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}")
        object.__setattr__(self, "role", Role(self.role))

    def for_scheduler(self, *, max_model_len: int, num_blocks: int) -> SchedulerConfig:
        """The core's limits, once the model has told its length and the device its room."""
        return SchedulerConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=max_model_len,
            block_size=self.block_size,
            num_blocks=num_blocks,
            enable_prefix_caching=self.enable_prefix_caching,
            role=self.role,
        )
