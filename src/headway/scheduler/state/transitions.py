"""The states of a request, the events that change them, and the one table that says what an event does in a state.

A pair of event and state is in the table as a change of state, or as ignored. Every other pair is a fault of the
scheduler and raises InvalidTransition before anything is written. The docs show what `markdown` makes of the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from headway.request import RequestStatus

NEW = RequestStatus.NEW
WAITING = RequestStatus.WAITING
PREPARING = RequestStatus.PREPARING
RESERVED = RequestStatus.RESERVED
PREFILL = RequestStatus.RUNNING_PREFILL
DECODE = RequestStatus.RUNNING_DECODE
PREEMPTED = RequestStatus.PREEMPTED
SENDING = RequestStatus.SENDING
RECEIVING = RequestStatus.RECEIVING
FINISHED = RequestStatus.FINISHED


class Event(IntEnum):
    """What happens to a request."""

    ADD = 0
    ADD_UNPREPARED = 1
    RESERVE = 2
    PREPARED = 3
    RECEIVE = 4
    START = 5
    ADMIT = 6
    CHUNK = 7
    LAST_CHUNK = 8
    RESULT = 9
    PUBLISH = 10
    PREEMPT = 11
    LEND = 12
    SENT = 13
    DROP = 14
    EXPIRE = 15
    PULL = 16
    GIVE_UP = 17
    END = 18


class Rule(NamedTuple):
    """What one event does. moves: from state to state. ignored: the states in which it changes nothing, as it is late,
    was told twice, or means a part of a request's life that is over. cause: where it comes from."""

    cause: str
    moves: dict[RequestStatus, RequestStatus]
    ignored: frozenset[RequestStatus] = frozenset()


class InvalidTransition(RuntimeError):
    """An event met a request in a state for which the table has no rule. Nothing was written."""


_ACCEPTED = frozenset(RequestStatus) - {NEW}


def _except(*states: RequestStatus) -> frozenset[RequestStatus]:
    return _ACCEPTED - set(states)


_COMPUTES = {PREFILL: PREFILL, DECODE: DECODE}
# Results can be late only for a request that has run.
_RAN = frozenset((PREEMPTED, SENDING, FINISHED))

TABLE: dict[Event, Rule] = {
    Event.ADD: Rule("`AddRequest`, nothing to prepare", {NEW: WAITING}),
    Event.ADD_UNPREPARED: Rule("`AddRequest`, to be prepared first", {NEW: PREPARING}),
    Event.RESERVE: Rule("`ReservePrefill`, `ReserveDecode`: there are slot and blocks", {NEW: RESERVED}),
    Event.PREPARED: Rule("`PreprocessDone`", {PREPARING: WAITING}, _except(PREPARING)),
    Event.RECEIVE: Rule(
        "`StartDecode`, `ReceiveDone`: the KV of the prompt has come, perhaps with the first token",
        {RESERVED: RESERVED, RECEIVING: RECEIVING},
        _except(RESERVED, RECEIVING),
    ),
    Event.START: Rule(
        "`StartPrefill`; `StartDecode` after RECEIVE; `ReceiveDone`, if the KV has not come without RECEIVE",
        {RESERVED: PREFILL, RECEIVING: PREFILL},
        _except(RESERVED, RECEIVING),
    ),
    Event.ADMIT: Rule("a pass gives slot and blocks", {WAITING: PREFILL, PREEMPTED: PREFILL}),
    Event.CHUNK: Rule("a step computes a part of the known tokens", {PREFILL: PREFILL}),
    Event.LAST_CHUNK: Rule("a step computes the last of the known tokens", {PREFILL: DECODE}),
    Event.RESULT: Rule("`StepResult`, for the slot and generation of its launch", _COMPUTES, _RAN),
    Event.PUBLISH: Rule("`PublishOutput`", {DECODE: DECODE}, _except(DECODE)),
    Event.PREEMPT: Rule(
        "blocks are short, a more urgent request, `PreemptAll`, `Pause`", dict.fromkeys(_COMPUTES, PREEMPTED)
    ),
    Event.LEND: Rule("P: the first token is known, the KV goes to D", {DECODE: SENDING}),
    Event.SENT: Rule("`SendDone`", {SENDING: FINISHED}, _except(SENDING)),
    Event.DROP: Rule("`DropReservations`", {RESERVED: FINISHED}, _except(RESERVED)),
    Event.EXPIRE: Rule("`Tick`: its deadline has passed", dict.fromkeys((PREPARING, RESERVED, SENDING), FINISHED)),
    Event.PULL: Rule("D: a pass gives slot and blocks; a connector fills them", {WAITING: RECEIVING}),
    Event.GIVE_UP: Rule(
        "D: the KV has not come in time, or would be out of date", {RECEIVING: PREEMPTED}, _except(RECEIVING)
    ),
    Event.END: Rule(
        "`FinishRequests`, `AbortRequests`, `Clear`, `Pause`, `DeviceLost`; the last token; an error",
        dict.fromkeys(sorted(_except(FINISHED)), FINISHED),
        frozenset((FINISHED,)),
    ),
}

# The same by number, for the way that every request takes: NEXT[event][state], None where there is no change.
NEXT: tuple[tuple[RequestStatus | None, ...], ...] = tuple(
    tuple(TABLE[event].moves.get(state) for state in RequestStatus) for event in Event
)


def state_after(event: Event, state: RequestStatus, request_id: str) -> RequestStatus:
    """The state that an event leads to. Raises InvalidTransition if it changes nothing or must not happen."""
    after = NEXT[event][state]
    if after is None:
        raise InvalidTransition(f"{event.name} cannot happen to request {request_id!r} in state {state.name}")
    return after


def applies(event: Event, state: RequestStatus, request_id: str) -> bool:
    """Whether an event from outside changes a request in this state; False if it is ignored there.

    Raises InvalidTransition if it must not happen.
    """
    if NEXT[event][state] is None and state in TABLE[event].ignored:
        return False
    state_after(event, state, request_id)
    return True


def markdown() -> str:
    """The table as the docs print it."""
    lines = ["| event | comes from | change of state | ignored in |", "|---|---|---|---|"]
    lines += [
        f"| {event.name} | {rule.cause} | {', '.join(_changes(rule.moves))} | {_names(rule.ignored)} |"
        for event, rule in TABLE.items()
    ]
    return "\n".join(lines)


def _changes(moves: dict[RequestStatus, RequestStatus]) -> Iterator[str]:
    """From which states to which; the states with the same target together."""
    stay = [state for state in moves if moves[state] is state]
    if stay:
        yield f"none in {_names(stay)}"
    for target in dict.fromkeys(moves.values()):
        origins = [state for state in moves if moves[state] is target and state is not target]
        if origins:
            yield f"{_names(origins)} → {target.name}"


def _names(states: Iterable[RequestStatus]) -> str:
    states = set(states)
    missing = set(_ACCEPTED - states)
    if len(missing) == 1:
        return f"all but {missing.pop().name}"
    return ", ".join(state.name for state in RequestStatus if state in states)
