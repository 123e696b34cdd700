"""The settings that a user can choose, validated in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Literal, get_args

from headway.kv_events_config import KVEventsConfig

SchedulerName = Literal["v0", "v1", "v2"]
ReserveName = Literal["peak", "blocks", "none"]
VictimName = Literal["least-waste", "last-in-line"]
PauseMode = Literal["abort", "preempt"]  # what a pause does to the requests that run


class Role(StrEnum):
    """What an engine does with a request: both phases, only the prefill (P), or only the decode (D)."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"


ANY_PEER = "*"  # as `EngineConfig.kv_peers`
KV_SECRET_VARIABLE = "HEADWAY_KV_SECRET"  # of the environment, where `EngineConfig.kv_secret` is not given


class KVTransport(StrEnum):
    """How KV travels between engines. auto: shared memory on one host, else TCP; the others: in this way alone."""

    AUTO = "auto"
    SHARED_MEMORY = "shared-memory"
    NIXL = "nixl"
    TCP = "tcp"


def _at_least(name: str, value: int | float, minimum: int | float) -> None:
    if not value >= minimum:  # also refuses NaN
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingOptions:
    """How requests are scheduled: options that the engine and the core share.

    Sizes
    max_num_seqs: slots, that is the most requests that run at once.
    max_num_batched_tokens: the most tokens that one step computes, over all requests.
    block_size: tokens in one KV-cache block, a power of two.
    role: the phases that this engine computes; a prefill engine computes the prompt and one token.

    Caching
    enable_prefix_caching: reuse the blocks of equal prompt prefixes.
    enable_output_caching: publish blocks of generated tokens too, as soon as they are full. If off, only
        `publish_output` does.

    Chunked prefill
    max_num_partial_prefills: the most prompts that are partly computed at once; 0: one per slot.
    long_prefill_token_threshold: a prompt with more remaining tokens is long. A step computes at most this many tokens
        of it while other prompts can use the rest. None: half of max_num_batched_tokens; 0: no prompt is long.
    max_long_partial_prefills: the most long prompts that are partly computed at once; shorter prompts pass long
        prompts that wait.
    deterministic: a chunk ends at a multiple of deterministic_chunk_size, or at the last known token.
    encoder_cache_size: encoder tokens of images and videos that the device keeps. None: max_num_batched_tokens.
    num_speculative_tokens: draft tokens per decoding request. They take budget and blocks (k of k + 1 tokens). Above 0
        a step may return several tokens for a decoding request, or none, and only one step with decodes is in flight.

    Admission
    reserve: blocks that an admission leaves free for decoding requests. "peak": what they will take up to the moment
        when they hold the most, if their answers become as long as other answers; "blocks": a fixed number each;
        "none".
    max_bypass: how often other requests may pass a request that waits for blocks.
    ageing_seconds: seconds of waiting that count as one level of priority; 0: priorities are strict.

    Preemption
    victim: the request to preempt. "least-waste": the request with the fewest computed tokens outside the prefix
        cache; "last-in-line": the request that came last.
    enable_priority_preemption: a request may displace running requests of lower priority.

    Deadlines, seconds
    preprocess_timeout: for the preparation of a request.
    reservation_timeout: until a reservation of P or D starts; then its slot and blocks are released.
    hold_timeout: the same for a reservation that only asks whether there are a slot and blocks (see
        `headway.adapters.fastdeploy`).
    send_timeout: for sending the KV of a request from P to D.
    lend_timeout: until blocks that are lent to D come back, if D does not renew the lease.
    receive_timeout: for the KV of a request to come from P; then its prompt is computed here.

    Limits of P/D, in blocks; None: the pool is the limit
    max_lent_blocks: that P lends. Above it the oldest lease that no D has claimed is revoked.
    max_receiving_blocks: of D that KV is on the way to. Requests that would need more wait.

    Raises ValueError, naming the value and the limit, for anything that could not work.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    role: Role = Role.MIXED
    enable_prefix_caching: bool = True
    enable_output_caching: bool = True
    max_num_partial_prefills: int = 0
    long_prefill_token_threshold: int | None = None
    max_long_partial_prefills: int = 1
    deterministic: bool = False
    deterministic_chunk_size: int = 16
    encoder_cache_size: int | None = None
    num_speculative_tokens: int = 0
    reserve: ReserveName = "peak"
    max_bypass: int = 16
    ageing_seconds: float = 0.0
    victim: VictimName = "least-waste"
    enable_priority_preemption: bool = True
    preprocess_timeout: float = 60.0
    reservation_timeout: float = 60.0
    hold_timeout: float = 2.0
    send_timeout: float = 60.0
    lend_timeout: float = 30.0
    receive_timeout: float = 60.0
    max_lent_blocks: int | None = None
    max_receiving_blocks: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "role", Role(self.role))
        for name in ("max_num_seqs", "block_size", "max_long_partial_prefills", "deterministic_chunk_size"):
            _at_least(name, getattr(self, name), 1)
        for name in ("max_num_partial_prefills", "num_speculative_tokens", "max_bypass", "ageing_seconds"):
            _at_least(name, getattr(self, name), 0)
        for name in (
            *("long_prefill_token_threshold", "encoder_cache_size", "max_lent_blocks", "max_receiving_blocks"),
        ):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 0)
        for name in (
            *("preprocess_timeout", "reservation_timeout", "hold_timeout", "send_timeout"),
            *("lend_timeout", "receive_timeout"),
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds, got {getattr(self, name)}")
        _one_of("reserve", self.reserve, get_args(ReserveName))
        _one_of("victim", self.victim, get_args(VictimName))
        if self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size must be a power of two, got {self.block_size}")
        if self.num_speculative_tokens > self.block_size:
            raise ValueError(
                f"num_speculative_tokens ({self.num_speculative_tokens}) must not exceed block_size "
                f"({self.block_size}): a step fills at most two blocks of a decoding request"
            )
        if self.max_num_batched_tokens < self.max_num_seqs * self.tokens_per_decode:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}) x {self.tokens_per_decode}: every running request decodes "
                f"{self.tokens_per_decode} token(s) in a step"
            )
        if self.deterministic and self.smallest_chunk_budget < self.deterministic_chunk_size:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) leaves a prefill {self.smallest_chunk_budget} "
                f"tokens when all other slots decode, less than deterministic_chunk_size "
                f"({self.deterministic_chunk_size}): it could wait for ever"
            )

    @property
    def tokens_per_decode(self) -> int:
        """Tokens of a step's budget that one decoding request takes."""
        return 1 + self.num_speculative_tokens

    @property
    def smallest_chunk_budget(self) -> int:
        """Tokens of a step that a prefill can count on: the rest of the budget when all other slots decode."""
        if self.role is Role.PREFILL:
            return self.max_num_batched_tokens
        return self.max_num_batched_tokens - (self.max_num_seqs - 1) * self.tokens_per_decode

    @property
    def long_prefill_tokens(self) -> int:
        """The effective `long_prefill_token_threshold`; 0: no prompt is long."""
        threshold = self.long_prefill_token_threshold
        return self.max_num_batched_tokens // 2 if threshold is None else threshold

    @property
    def encoder_budget(self) -> int:
        """The effective `encoder_cache_size`."""
        return self.max_num_batched_tokens if self.encoder_cache_size is None else self.encoder_cache_size


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig(SchedulingOptions):
    """Limits of one scheduler: the options, and the sizes that depend on model and device.

    max_model_len: the most tokens of one request, prompt and output together.
    num_blocks: blocks of the pool. Block 0 is one of them: it is padding and never handed out.
    reads_same_step: the executor writes the KV of all rows of a step, layer by layer, before a row reads it. So a row
        may share blocks that another row of the same step fills; else it shares them one step later.
    keeps_kv_events: tell what happens to the prefix cache, in `Effects.kv_events`.
    quarantine_slots: a slot that is released other than by the result of a step (abort, finish from outside,
        preemption, clear, deadline) is given to no request before the device has acknowledged it: `SlotAcknowledged`.
        Its blocks are handed on at once. For devices that run free, and answer later.

    Raises ValueError, naming the value and the limit, for anything that could not work.
    """

    max_model_len: int = 2048
    num_blocks: int = 4096
    reads_same_step: bool = False
    keeps_kv_events: bool = False
    quarantine_slots: bool = False

    def __post_init__(self) -> None:
        SchedulingOptions.__post_init__(self)
        _at_least("max_model_len", self.max_model_len, 2)
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
        """Blocks of the longest request: the width of a block table."""
        return self.blocks_for(self.max_model_len)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(SchedulingOptions):
    """The settings for running a model. `None` means: decided when the model is loaded.

    model: a local folder, a hub id, or "tiny-random:FAMILY" (see `tiny_random`); None is the embedded default model.
    scheduler: the resource manager; None follows the environment switches (see `managers.choose_scheduler`).
    device, dtype: as torch names them; "auto" is CUDA if there is a GPU, and the dtype of the checkpoint.
    attention_backend: "torch"; "numba", a compiled kernel for decodes in float32 on a CPU; or "flashinfer", for half
        precision on CUDA. "auto" takes numba or flashinfer where it is installed and fits, else torch.
    tensor_parallel_size: processes that the model is cut over, each with a device of its own (see `executor.ranks`).
        Above 1 decodes run without CUDA graphs.
    enforce_eager: launch the kernels of a decode step one by one, not as one CUDA graph.
    num_blocks: blocks of the KV cache; None computes the number from `kv_cache_memory_gb` on a CPU and from
        `gpu_memory_utilization` on CUDA.
    max_waiting: the most requests in the engine beyond `max_num_seqs`; further requests are refused.
    async_scheduling: schedule and launch the next step while the present one computes, so that the device never waits
        for the scheduler. The answers are the same; the first step of a new request begins after both.
    step_timeout: seconds until the watchdog gives up a step of the device.
    kv_listen: "HOST:PORT" where other engines may read the KV that this engine lends; port 0: any free one. None:
        nothing is lent.
    kv_peers: "HOST:PORT", with commas between: the engines whose KV this engine may pull, by the names that they give
        themselves. "NAME=HOST:PORT" for an engine that is reached at another address than its name, which is the
        HOST:PORT of its `kv_listen`. Requests can name no other address. "*": every engine that the API process finds
        and that knows `kv_secret`, which must be given then; for clusters where engines come and go. Requests can name
        no address then.
    kv_secret: shared by engines that are not on one host; at least 16 characters.
    kv_transport: how KV is read from other engines. NIXL needs an extra and must be chosen on both sides; `tcp` also
        keeps other engines from mapping the memory of this one.
    kv_events_config: JSON of a `KVEventsConfig`: which blocks the prefix cache holds, published for routers. None:
        nothing is published.
    """

    model: str | None = None
    tokenizer: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    served_model_name: str | None = None
    scheduler: SchedulerName | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention_backend: str = "auto"
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    max_model_len: int | None = None
    num_blocks: int | None = None
    kv_cache_memory_gb: float = 1.0
    gpu_memory_utilization: float = 0.9
    max_waiting: int = 4096
    async_scheduling: bool = True
    step_timeout: float = 300.0
    seed: int = 0
    kv_listen: str | None = None
    kv_peers: str = ""
    kv_secret: str | None = None
    kv_transport: KVTransport = KVTransport.AUTO
    kv_events_config: str | None = None

    def __post_init__(self) -> None:
        SchedulingOptions.__post_init__(self)
        _at_least("max_waiting", self.max_waiting, 0)
        _at_least("tensor_parallel_size", self.tensor_parallel_size, 1)
        if self.tensor_parallel_size > 1 and self.role is not Role.MIXED:
            raise ValueError(
                f"tensor_parallel_size is {self.tensor_parallel_size} and the role {self.role}: a rank has a part of "
                "the KV alone, which does not travel between engines yet; use the role mixed"
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}")
        if not self.kv_cache_memory_gb > 0:
            raise ValueError(f"kv_cache_memory_gb must be above 0, got {self.kv_cache_memory_gb}")
        if not self.step_timeout > 0:
            raise ValueError(f"step_timeout must be above 0 seconds, got {self.step_timeout}")
        if self.kv_listen is not None:
            host_and_port("kv_listen", self.kv_listen)
        if self.kv_peers == ANY_PEER and self.kv_secret is None:
            raise ValueError(f"kv_peers {ANY_PEER!r} needs kv_secret: without it any program could be connected to")
        if self.moves_kv and self.role is Role.MIXED:
            raise ValueError("kv_listen and kv_peers are for engines whose role is prefill or decode, got role mixed")
        if self.kv_events is not None and not self.enable_prefix_caching:
            raise ValueError("kv_events_config needs prefix caching: without it no block is ever found again")
        if self.scheduler is not None:
            _one_of("scheduler", self.scheduler, get_args(SchedulerName))
        _one_of("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        _one_of("attention_backend", self.attention_backend, ("auto", "torch", "numba", "flashinfer"))

    @property
    def kv_addresses(self) -> dict[tuple[str, int], tuple[str, int]]:
        """The addresses of `kv_peers`, by the names of the engines. Raises ValueError for another text."""
        addresses: dict[tuple[str, int], tuple[str, int]] = {}
        if self.kv_peers == ANY_PEER:
            return addresses
        for peer in filter(None, (peer.strip() for peer in self.kv_peers.split(","))):
            name, _, address = peer.rpartition("=")
            addresses[host_and_port("kv_peers", name or address)] = host_and_port("kv_peers", address)
        return addresses

    @property
    def kv_events(self) -> KVEventsConfig | None:
        """How KV events are published; None if they are not. Raises ValueError for a `kv_events_config` that cannot be
        used."""
        if self.kv_events_config is None:
            return None
        config = KVEventsConfig.parse(self.kv_events_config)
        return config if config.publishes else None

    @property
    def moves_kv(self) -> bool:
        """Whether this engine lends KV to others, or pulls it from them."""
        return self.kv_listen is not None or self.kv_peers == ANY_PEER or bool(self.kv_addresses)

    def for_scheduler(
        self, *, max_model_len: int, num_blocks: int, reads_same_step: bool = False, keeps_kv_events: bool = False
    ) -> SchedulerConfig:
        """The limits of the core, once the length of the model, the blocks and the ways of the device are known."""
        options = {field.name: getattr(self, field.name) for field in fields(SchedulingOptions)}
        return SchedulerConfig(
            max_model_len=max_model_len,
            num_blocks=num_blocks,
            reads_same_step=reads_same_step,
            keeps_kv_events=keeps_kv_events or self.kv_events is not None,
            **options,
        )


def host_and_port(name: str, text: str) -> tuple[str, int]:
    """The parts of "HOST:PORT". Raises ValueError, naming the option and the value, for another text."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) >= 2**16:
        raise ValueError(f"{name} takes HOST:PORT with a port below {2**16}, got {text!r}")
    return host.strip("[]"), int(port)
