"""What the core is told (messages) and what it answers (effects).

A message is the only way to change scheduling state from outside. Messages are frozen and own their payload.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from headway.request import FinishReason, Request
from headway.scheduler.batch import IntArray, Logprobs, LongArray, StepResult


@dataclass(frozen=True, slots=True)
class AddRequest:
    """Queue a request."""

    request: Request


@dataclass(frozen=True, slots=True)
class FinishRequests:
    """End requests whose answer is complete, seen from outside (a stop string). Unknown uids are a no-op."""

    uids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AbortRequests:
    """End requests that nobody wants any more, in whatever state they are. Unknown uids are a no-op."""

    uids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """The device side was restarted or given up: what it held, KV and results, is gone.

    Every running request ends with an error; those that wait go on.
    """

    reason: str


Command = AddRequest | FinishRequests | AbortRequests
Message = Command | StepResult | DeviceLost


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """A request ended. Emitted exactly once per accepted request.

    stop_token: the token that ended it, when reason is STOP and it was seen by the core.
    message: why, when reason is ERROR.
    """

    uid: int
    request_id: str
    reason: FinishReason
    stop_token: int | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class TokenOutputs:
    """The tokens that one step sampled. uids: int64 [S]; tokens: int32 [S]; logprobs index into these rows."""

    uids: LongArray
    tokens: IntArray
    logprobs: Logprobs | None = None


@dataclass(slots=True)
class Effects:
    """What applying messages or scheduling brought about, for the loop to carry outside, in order:
    first `started`, then `tokens`, then `ended`.

    started: (uid, num_cached_tokens) of each request admitted for the first time.
    tokens: one record per step result applied.
    ended: requests that are over; their last token, if any, is in `tokens`.
    """

    started: list[tuple[int, int]] = field(default_factory=list)
    tokens: list[TokenOutputs] = field(default_factory=list)
    ended: list[RequestEnd] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.started or self.tokens or self.ended)


class Snapshot(NamedTuple):
    """The state in numbers, O(1) to make, immutable, published after every turn of the writer.

    Gauges (now): num_running, num_waiting, num_blocks_*. Counters (since the start): the rest.
    """

    step_id: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_in_flight: int = 0  # steps launched, result not yet applied
    num_slots: int = 0
    num_blocks_total: int = 0  # block 0 not counted
    num_blocks_free: int = 0
    num_blocks_evictable: int = 0
    num_requests_added: int = 0
    num_requests_ended: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0  # tokens computed in prefill chunks
    num_generation_tokens: int = 0
    num_prefix_query_tokens: int = 0
    num_prefix_hit_tokens: int = 0

    @property
    def kv_cache_usage(self) -> float:
        """Share of the pool that requests refer to, 0 to 1."""
        if not self.num_blocks_total:
            return 0.0
        return 1.0 - (self.num_blocks_free + self.num_blocks_evictable) / self.num_blocks_total

    @property
    def has_work(self) -> bool:
        """Whether any accepted request is unfinished."""
        return bool(self.num_running or self.num_waiting or self.num_in_flight)
