"""What the core is told. A message is the only way to change scheduling state from outside.

    command   a caller wants something done          query    a caller wants an answer at once
    result    of a step or a job; a lane of its own  Tick     the clock has passed a deadline

`reply` in a query or in AwaitSteps names the caller who waits; the core only hands it back. Messages are frozen and own
their payload. A uid that is unknown is ignored everywhere: its request has ended, or never was. What a message does to
a request in each state stands in `state.transitions.TABLE`.
"""

from __future__ import annotations

from dataclasses import dataclass

from headway.request import Request, Span
from headway.scheduler.batch import IntArray, StepResult

# -- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddRequest:
    """Queue a request; if it is `to_prepare`, once it is prepared."""

    request: Request


@dataclass(frozen=True, slots=True)
class FinishRequests:
    """End requests whose answer is complete, seen from outside (a stop string)."""

    uids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AbortRequests:
    """End requests that are not wanted any more, in whatever state they are."""

    uids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PublishOutput:
    """Publish the full blocks of these running requests, generated tokens included, to the prefix cache."""

    uids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StartPrefill:
    """P: D has agreed; compute these reserved requests."""

    uids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StartDecode:
    """D: the KV of a reserved request's prompt is in its blocks, and `token` follows; decode from there. None: the last
    token of the prompt is computed anew, and the first token of the output is drawn here."""

    uid: int
    token: int | None


@dataclass(frozen=True, slots=True)
class DropReservations:
    """Give up these reservations: the other side failed. Requests in any other state are left alone."""

    uids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PreemptAll:
    """Running requests give up slot and blocks and go back to their place in the queue."""


@dataclass(frozen=True, slots=True)
class Clear:
    """End every request (ABORT) and forget what is cached. Requests added later are not touched."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Schedule nothing until `Resume`. All requests are aborted, or running ones are preempted and kept.

    reset_prefix_cache: forget what is cached once nothing is in flight (the weights are about to change).
    """

    abort: bool
    reset_prefix_cache: bool


@dataclass(frozen=True, slots=True)
class Resume:
    """Schedule again."""


@dataclass(frozen=True, slots=True)
class HoldAdmissions:
    """Give no request a slot until `LiftHold`: no new request, no preempted request, no reservation. Requests with a
    slot go on, and may be preempted where blocks are short. This is no pause: `Pause` and `Resume` leave it as it is.
    """


@dataclass(frozen=True, slots=True)
class LiftHold:
    """Admit requests again."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time is past `Snapshot.next_deadline`: requests whose deadline has passed end."""


@dataclass(frozen=True, slots=True)
class AwaitSteps:
    """The one command that is answered: `reply` is in Effects.awaited as soon as the results of all steps in flight now
    are in; at once if there are none."""

    reply: int


Command = (
    AddRequest
    | FinishRequests
    | AbortRequests
    | PublishOutput
    | StartPrefill
    | StartDecode
    | DropReservations
    | PreemptAll
    | Clear
    | Pause
    | Resume
    | HoldAdmissions
    | LiftHold
    | AwaitSteps
)

# -- queries: for `Scheduler.ask`; QueryError if a query cannot be answered, and then nothing has changed ----------


@dataclass(frozen=True, slots=True)
class ReservePrefill:
    """P: slot, blocks for the prompt and what the prefix cache has of it. Answer: Reservation, or None (no room).

    shows_blocks: whether the asker tells a connector the blocks now. Then they stay the same; else a block may be
        exchanged, until it is computed, for a block that another request has computed meanwhile.
    """

    reply: int
    request: Request
    shows_blocks: bool = False


@dataclass(frozen=True, slots=True)
class ReserveDecode:
    """D: slot, and blocks for the prompt and the first token, under the reserve rule; refused while requests wait.

    timeout: seconds until the reservation ends if it is not started. Answer: Reservation, or None (no room).
    shows_blocks: whether the asker tells a connector the blocks, so that KV may be written to them from now on. Then
        they come back by `StartDecode`, `DropReservations` or `ReceiveDone` alone.
    """

    reply: int
    request: Request
    timeout: float
    shows_blocks: bool = True


@dataclass(frozen=True, slots=True)
class ConsumeLease:
    """P: D has read its last block of a lease, which ends. Answer: bool, whether the lease was there all the time; else
    what D has read is void. generation: see `Lending`."""

    reply: int
    uid: int
    generation: int


@dataclass(frozen=True, slots=True)
class ResetPrefixCache:
    """Forget what is cached. Running requests go on; what they have computed is never found by other requests.

    Answer: int, the blocks that were cached."""

    reply: int


@dataclass(frozen=True, slots=True)
class GetProgress:
    """How far a request is. Answer: Progress, or None if there is no such request."""

    reply: int
    uid: int


@dataclass(frozen=True, slots=True)
class Audit:
    """Recount everything. Answer: AuditReport."""

    reply: int


Query = ReservePrefill | ReserveDecode | ConsumeLease | ResetPrefixCache | GetProgress | Audit

# -- results ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """The device side was restarted or given up: what it held, KV and results, is gone.

    Every request that has computed anything ends with an error; waiting requests go on.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class PreprocessDone:
    """A preprocess job has ended. prompt None: it stays as it was. grammar: see `Request`. error: why it failed; the
    request ends with it. refused: the error says what is wrong with the request."""

    uid: int
    prompt: IntArray | None = None
    spans: tuple[Span, ...] = ()
    error: str | None = None
    grammar: object | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class SendDone:
    """The KV of a request is with D, or cannot be sent (error). The sender reads its blocks no more."""

    uid: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ReceiveDone:
    """D: the connector has stopped, and writes no more to the blocks of this request. To be told for each `Pull`, and
    for each reservation of D that has ended without `StartDecode` or `DropReservations`.

    error: why the KV of the prompt has not come, or is void; then the prompt is computed here. None: all of it is
        there. token: the first token of the output, if P's is to be used; None: it is drawn here.
    """

    uid: int
    token: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LeasesRenewed:
    """P: D still wants these leases. Each lasts `lend_timeout` from now on, and is claimed."""

    uids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LeasesEnded:
    """P: D does not want these leases any more."""

    uids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SlotAcknowledged:
    """The device has nothing more to do with the former request of a slot: the quarantine of the slot ends, and another
    request may get it. slot, generation: as in `QuarantinedSlot`. Told twice, or of a quarantine that is over, it
    changes nothing."""

    slot: int
    generation: int


Result = (
    StepResult | DeviceLost | PreprocessDone | SendDone | ReceiveDone | LeasesRenewed | LeasesEnded | SlotAcknowledged
)
Message = Command | Query | Result | Tick
