"""What comes of a message: tokens, ends, work for others."""

from __future__ import annotations

from dataclasses import dataclass, field

from headway.request import FinishReason, Request
from headway.scheduler.batch import IntArray, Logprobs, LongArray


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """A request ended. Emitted exactly once per accepted request.

    stop_token: the token that ended it, when reason is STOP and it was seen by the core.
    error: why, when reason is ERROR, and where there is more to say than ABORT.
    engine_stopped: the request was cut off because the engine stopped.
    """

    uid: int
    request_id: str
    reason: FinishReason
    stop_token: int | None = None
    error: str | None = None
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


@dataclass(slots=True)
class Effects:
    """What a message brought about, to be carried outside.

    For the callers, in this order:
    started: (uid, num_cached_tokens) of each request admitted for the first time.
    tokens: one record per step result applied.
    ended: requests that are over; their last token, if any, is in `tokens`.

    For the loop, which hands them to a worker each:
    sending: prompts whose KV is complete and goes to D; before their requests are in `ended`.
    jobs: requests to be prepared; each is answered by PreprocessDone, unless it ends before.

    For the manager:
    awaited: reply ids of `AwaitSteps` whose steps are answered for.
    """

    started: list[tuple[int, int]] = field(default_factory=list)
    tokens: list[TokenOutputs] = field(default_factory=list)
    sending: list[Sending] = field(default_factory=list)
    ended: list[RequestEnd] = field(default_factory=list)
    jobs: list[Request] = field(default_factory=list)
    awaited: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.started or self.tokens or self.sending or self.ended or self.jobs or self.awaited)
