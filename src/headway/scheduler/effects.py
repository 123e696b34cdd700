"""What the core answers: effects of messages and passes, and the state in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from headway.request import FinishReason, Request, RequestStatus
from headway.scheduler.batch import IntArray, Logprobs, LongArray


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """A request ended. Emitted exactly once per accepted request.

    stop_token: the token that ended it, when reason is STOP and it was seen by the core.
    message: why, when reason is ERROR.
    engine_stopped: the request was cut off because the engine stopped.
    """

    uid: int
    request_id: str
    reason: FinishReason
    stop_token: int | None = None
    message: str | None = None
    engine_stopped: bool = False


@dataclass(frozen=True, slots=True)
class TokenOutputs:
    """The tokens that one step sampled. uids: int64 [S]; tokens: int32 [S]; logprobs index into these rows."""

    uids: LongArray
    tokens: IntArray
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class Sending:
    """P: the KV of a prompt is complete and must go to D. Answered by `SendDone`, also when the request ends meanwhile.

    blocks: int32, in the order of the prompt; the last one may be part full. token: what follows the prompt.
    """

    uid: int
    request_id: str
    blocks: IntArray
    num_tokens: int
    token: int


@dataclass(frozen=True, slots=True)
class Answer:
    """To the query that carried this reply id."""

    reply: int
    value: object


@dataclass(frozen=True, slots=True)
class Reservation:
    """A slot and blocks held for a request. blocks: int32, a copy; the first `num_cached_tokens` tokens are there.

    after_step: a step up to this one may still write to the blocks, if it is in flight. What comes from outside the
        device's stream of steps may be put there once they are answered for: when Snapshot.step_id - num_in_flight has
        reached it.
    """

    uid: int
    slot: int
    blocks: IntArray
    num_cached_tokens: int
    after_step: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is, in tokens. num_computed_tokens counts what is in flight."""

    uid: int
    request_id: str
    status: RequestStatus
    num_prompt_tokens: int
    num_output_tokens: int
    num_computed_tokens: int
    num_blocks: int
    num_preemptions: int


@dataclass(slots=True)
class Effects:
    """What applying messages or scheduling brought about, for the loop to carry outside, in order:
    first `started`, then `tokens`, then `sending`, then `ended`; `jobs` and `answers` at any time.

    started: (uid, num_cached_tokens) of each request admitted for the first time.
    tokens: one record per step result applied.
    sending: prompts whose KV is complete and goes to D.
    ended: requests that are over; their last token, if any, is in `tokens`.
    jobs: requests to be prepared; each is answered by PreprocessDone, unless it ends before.
    answers: to queries.
    """

    started: list[tuple[int, int]] = field(default_factory=list)
    tokens: list[TokenOutputs] = field(default_factory=list)
    sending: list[Sending] = field(default_factory=list)
    ended: list[RequestEnd] = field(default_factory=list)
    jobs: list[Request] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.started or self.tokens or self.sending or self.ended or self.jobs or self.answers)
