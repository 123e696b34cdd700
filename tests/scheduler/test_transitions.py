"""Every event in every state: it changes the state as the table says, or is ignored, or raises before any write."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headway.request import FinishReason, RequestStatus
from headway.scheduler import (
    AbortRequests,
    DropReservations,
    FinishRequests,
    Message,
    PreprocessDone,
    PublishOutput,
    ReceiveDone,
    SendDone,
    StartDecode,
    StartPrefill,
)
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.state import State
from headway.scheduler.state.transitions import TABLE, Event, InvalidTransition, applies, markdown
from tests.scheduler import test_states as scenes
from tests.scheduler.driver import Driver, config

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
REASON = FinishReason.ABORT


def new() -> tuple[Driver, Entry]:
    driver = Driver(config())
    return driver, driver.core._moves.newcomer(driver.make(range(9), max_tokens=12))


def finished() -> tuple[Driver, Entry]:
    driver, entry = brought_to(scenes.decode)
    driver.abort(entry.uid)
    return driver, entry


def brought_to(scene: Callable[[], scenes.Scene]) -> tuple[Driver, Entry]:
    driver, request = scene()
    return driver, driver.state.entries[request.uid]


# A few states in several situations; the table knows only the state.
STATES: list[Callable[[], tuple[Driver, Entry]]] = [
    new,
    finished,
    *(lambda scene=scene: brought_to(scene) for scene in scenes.SCENES),  # type: ignore[misc]
]
NAMES = ["new", "finished", *(scene.__name__ for scene in scenes.SCENES)]

# Blocks are taken from the pool only where the event is allowed, so that the books stay right.
Deed = Callable[[Moves, State, Entry], object]
DEEDS: dict[Event, Deed] = {
    Event.ADD: lambda moves, _, entry: moves.add(entry),
    Event.ADD_UNPREPARED: lambda moves, _, entry: moves.add_unprepared(entry, 9.0),
    Event.RESERVE: lambda moves, state, entry: moves.reserve(entry, blocks_for(Event.RESERVE, state, entry), 0, 9.0),
    Event.PREPARED: lambda moves, _, entry: moves.prepared(entry, entry.request),
    Event.RECEIVE: lambda moves, _, entry: moves.receive(entry, 3),
    Event.START: lambda moves, _, entry: moves.start(entry),
    Event.ADMIT: lambda moves, state, entry: moves.admit(entry, blocks_for(Event.ADMIT, state, entry), 0),
    Event.CHUNK: lambda moves, _, entry: moves.compute_chunk(entry, len(entry.tokens) - 1),
    Event.LAST_CHUNK: lambda moves, _, entry: moves.compute_chunk(entry, len(entry.tokens)),
    Event.RESULT: lambda moves, _, entry: moves.confirm_chunk(entry, 0, None),
    Event.PREEMPT: lambda moves, _, entry: moves.preempt(entry),
    Event.LEND: lambda moves, _, entry: moves.lend(entry, FinishReason.LENGTH, 9.0),
    Event.SENT: lambda moves, _, entry: moves.end(entry, REASON, event=Event.SENT),
    Event.DROP: lambda moves, _, entry: moves.end(entry, REASON, event=Event.DROP),
    Event.EXPIRE: lambda moves, _, entry: moves.end(entry, REASON, event=Event.EXPIRE),
    Event.END: lambda moves, _, entry: moves.end(entry, REASON),
    Event.PULL: lambda moves, state, entry: moves.pull(entry, blocks_for(Event.PULL, state, entry), 0, 9.0),
    Event.GIVE_UP: lambda moves, _, entry: moves.give_up(entry),
}
# What says so from outside, to a request in any state.
MESSAGES: dict[Event, Callable[[int], list[Message]]] = {
    Event.PREPARED: lambda uid: [PreprocessDone(uid), PreprocessDone(uid, error="broken")],
    Event.RECEIVE: lambda uid: [StartDecode(uid, 3), ReceiveDone(uid, 3), ReceiveDone(uid, error="broken")],
    Event.START: lambda uid: [StartPrefill((uid,))],
    Event.PUBLISH: lambda uid: [PublishOutput((uid,))],
    Event.SENT: lambda uid: [SendDone(uid), SendDone(uid, "broken")],
    Event.DROP: lambda uid: [DropReservations((uid,))],
    Event.END: lambda uid: [AbortRequests((uid,)), FinishRequests((uid,))],
}


def blocks_for(event: Event, state: State, entry: Entry) -> np.ndarray:
    if entry.status not in TABLE[event].moves:
        return np.zeros(0, dtype=np.int32)
    if not state.slots.num_free_slots():  # the scene keeps the only slot busy
        (other,) = [other for other in state.occupants if other is not None]
        Moves(state, None, lambda num_output: None).end(other, REASON)  # type: ignore[arg-type]
    return state.pool.take(state.config.blocks_for(entry.limit))


def everything(driver: Driver) -> bytes:
    """All that the core owns, and all that it counts."""
    return pickle.dumps((driver.core._state, driver.core._steps.in_flight))


@pytest.mark.parametrize("event", DEEDS, ids=lambda event: event.name)
@pytest.mark.parametrize("bring", STATES, ids=NAMES)
def test_an_event_changes_the_state_as_the_table_says_or_raises_and_nothing_has_changed(
    bring: Callable[[], tuple[Driver, Entry]], event: Event
) -> None:
    driver, entry = bring()
    was, state = entry.status, driver.state
    if was in TABLE[event].moves:
        DEEDS[event](driver.core._moves, state, entry)
        assert entry.status is TABLE[event].moves[was]
        assert state.population[entry.status] == sum(e.status is entry.status for e in live(state, entry))
        assert driver.core.audit_report().ok
        return
    before = everything(driver), pickle.dumps(entry)
    with pytest.raises(InvalidTransition) as raised:
        DEEDS[event](driver.core._moves, state, entry)
    for word in (event.name, was.name, repr(entry.request.request_id)):
        assert word in str(raised.value)
    assert (everything(driver), pickle.dumps(entry)) == before


def live(state: State, entry: Entry) -> list[Entry]:
    """Requests that count: live requests, and the request in question if it has just ended."""
    others = [other for other in state.entries.values() if other is not entry]
    return [*others, entry]


@pytest.mark.parametrize("event", MESSAGES, ids=lambda event: event.name)
@pytest.mark.parametrize("bring", STATES[1:], ids=NAMES[1:])
def test_a_message_that_the_table_ignores_in_a_state_changes_nothing(
    bring: Callable[[], tuple[Driver, Entry]], event: Event
) -> None:
    driver, entry = bring()
    if entry.status not in TABLE[event].ignored:
        assert applies(event, entry.status, entry.request.request_id)
        return
    for message in MESSAGES[event](entry.uid):
        before = everything(driver)
        assert not driver.tell(message)
        assert everything(driver) == before


@pytest.mark.parametrize("event", MESSAGES, ids=lambda event: event.name)
def test_no_message_is_an_error_in_any_state_of_a_request_that_was_accepted(event: Event) -> None:
    covered = set(TABLE[event].moves) | TABLE[event].ignored
    assert covered - {RequestStatus.NEW} == set(RequestStatus) - {RequestStatus.NEW}


def test_every_event_has_a_rule_and_a_deed_or_a_message() -> None:
    assert list(TABLE) == list(Event)
    assert set(DEEDS) | set(MESSAGES) == set(Event)
    for rule in TABLE.values():
        assert not rule.ignored & set(rule.moves)


def test_every_state_is_tried() -> None:
    assert {bring()[1].status for bring in STATES} == set(RequestStatus)


def test_many_end_together_or_none_does() -> None:
    driver, entry = brought_to(scenes.decode)
    over = finished()[1]
    before = everything(driver)
    with pytest.raises(InvalidTransition, match="END cannot happen to request 'r1' in state FINISHED"):
        driver.core._moves.end_all([entry, over], REASON)
    assert everything(driver) == before


def test_the_docs_print_the_table() -> None:
    text = ARCHITECTURE.read_text()
    _, printed = text.split("<!-- transitions: as headway.scheduler.state.transitions.markdown() writes them -->\n")
    assert printed.split("\n<!-- end of transitions -->")[0] == markdown()
