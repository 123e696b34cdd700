"""What comes of a message: tokens, ends, work for others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headway.kvcache import KVEvent
from headway.request import FinishReason, Request
from headway.scheduler.batch import IntArray, Logprobs, LongArray, PromptLogprobs
from headway.scheduler.state.slot_pool import QuarantinedSlot


@dataclass(slots=True)  # not frozen: see `Batch`
class RequestEnd:
    """A request ended. Emitted exactly once per accepted request, and not changed any more.

    stop_token: the token that ended it, when reason is STOP and it was seen by the core.
    error: why, when reason is ERROR, and where there is more to say than ABORT.
    engine_stopped: the request was cut off because the engine stopped.
    refused: the error says what is wrong with the request; nothing was computed for it.
    """

    uid: int
    request_id: str
    reason: FinishReason
    stop_token: int | None = None
    error: str | None = None
    engine_stopped: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class TokenOutputs:
    """The tokens that one step sampled. uids: int64 [S]; tokens: int32 [S]; logprobs index into these rows. A request
    with several tokens has several rows, in the order of its tokens."""

    uids: LongArray
    tokens: IntArray
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class PromptOutputs:
    """Log-probabilities of prompt tokens that one step computed. uids: int64 [C], of the runs; the rows of `logprobs`
    index into these. Of each request every position from 1 on comes once, in order, before its first token."""

    uids: LongArray
    logprobs: PromptLogprobs


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
class Pull:
    """D: the KV of a prompt must come from P. Answered by `ReceiveDone`, also when the request ends meanwhile.

    blocks: int32, of the whole prompt, in order; the KV of the first `num_cached_tokens` tokens, a multiple of the
        block size, is there, and stays. No step in flight writes to the others.
    """

    request: Request
    blocks: IntArray
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Lending:
    """P: D may read the KV of the first `num_tokens` tokens of a prompt. More follows, until `token` is there.

    blocks: int32, of these tokens, in order; until `token` is there, whole blocks alone.
    generation: greater after the request has lost its blocks; what was read of an earlier generation is void.
    token: what follows the prompt: all is computed, and a lease has begun. It lasts until `ConsumeLease` or
        `LeasesEnded`, or until it is in `Effects.revoked`. None: if the request ends before, nothing is lent.
    """

    uid: int
    request_id: str
    blocks: IntArray
    num_tokens: int
    generation: int
    token: int | None = None


@dataclass(slots=True)
class Effects:
    """What a message brought about, to be carried outside.

    For the callers, in this order:
    started: (uid, num_cached_tokens) of each request admitted for the first time.
    prompt_logprobs: of the chunks that ask for these; at most one record per step result applied.
    tokens: one record per step result applied.
    handovers: P: (uid, what D must be told) of prompts that are lent. The core leaves this to the writer.
    sourceless: D: uids of prompts that have blocks, and whose caller is to name the source of their KV. The core leaves
        this to the writer.
    ended: requests that are over; their last token, if any, is in `tokens`.

    For the loop, which hands them to a worker each:
    sending: prompts whose KV is complete and goes to D; before their requests are in `ended`.
    pulls: prompts whose KV is to come from P. The core leaves this to its owner: `Scheduler.take_pulls`.
    stopped_pulls: uids of pulls that are not wanted any more; each is answered all the same.
    lending: prompts, or parts of prompts, that D may read now.
    revoked: uids whose lease has ended before D consumed it.
    kv_is_void: P: what D was shown or lent before is gone, or out of date, whatever D holds of it.
    jobs: requests to be prepared; each is answered by PreprocessDone, unless it ends before.
    kv_events: what has happened to the prefix cache, in order; only with `keeps_kv_events`.
    quarantined: slots that wait for `SlotAcknowledged`; only with `quarantine_slots`. The core leaves this to its
        owner: `Scheduler.take_quarantined`.

    For the manager:
    awaited: reply ids of `AwaitSteps` whose steps are answered for.
    """

    started: list[tuple[int, int]] = field(default_factory=list)
    prompt_logprobs: list[PromptOutputs] = field(default_factory=list)
    tokens: list[TokenOutputs] = field(default_factory=list)
    sending: list[Sending] = field(default_factory=list)
    handovers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    sourceless: list[int] = field(default_factory=list)
    ended: list[RequestEnd] = field(default_factory=list)
    pulls: list[Pull] = field(default_factory=list)
    stopped_pulls: list[int] = field(default_factory=list)
    lending: list[Lending] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)
    kv_is_void: bool = False
    jobs: list[Request] = field(default_factory=list)
    kv_events: list[KVEvent] = field(default_factory=list)
    quarantined: list[QuarantinedSlot] = field(default_factory=list)
    awaited: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        of_requests = self.started or self.prompt_logprobs or self.tokens or self.ended
        for_callers = of_requests or self.handovers or self.sourceless
        for_workers = self.sending or self.pulls or self.stopped_pulls or self.lending or self.revoked or self.jobs
        of_memory = self.kv_is_void or self.kv_events or self.quarantined
        return bool(for_callers or for_workers or of_memory or self.awaited)
