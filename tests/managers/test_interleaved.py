"""Callers, the loop and the closing in every order of their steps: with one interruption anywhere, or with two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from headway.config import Role
from headway.errors import DuplicateRequestError, EngineDeadError, EnginePausedError, QueryError, QueueFullError
from headway.managers import Manager
from headway.request import FinishReason
from headway.sampling import SamplingParams
from headway.scheduler import AuditReport, AwaitSteps, Effects, Pause, Progress, RequestEnd, Reservation
from tests.managers.driving import ACCESSES, assert_nothing_held, hand_made, make, make_request
from tests.managers.interleaving import Stage, explore, on_stage

PAUSE = Pause(abort=True, reset_prefix_cache=True)
PATIENT = pytest.mark.parametrize("patient", [True, False], ids=["patient", "timing out"])


class Loop:
    """What the loop does, and what it saw ending."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.ended: list[RequestEnd] = []
        self.closed = False

    def take(self, effects: Effects) -> None:
        self.ended += effects.ended

    def drain(self) -> None:
        self.manager.drain()
        self.take(self.manager.take_effects())

    def close(self) -> None:
        self.take(self.manager.close(FinishReason.ABORT, "shut down"))
        self.closed = True

    def acts(self, plan: str) -> Callable[[], None]:
        """A turn, a turn and the end, ..."""
        return lambda: [getattr(self, step)() for step in plan.split(", ")] and None

    def count_ends(self, uid: int) -> int:
        return Counter(end.uid for end in self.ended)[uid]


def explored(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    play: Callable[[Stage, Manager, Loop], None],
    *,
    patient: bool = True,
    num_actors: int = 2,
    interruptions: int = 1,
    within_queries: bool = False,
    **changes: Any,
) -> None:
    def on_new_stage(stage: Stage) -> None:
        manager = on_stage(make(name, **changes), stage, monkeypatch, patient=patient)
        play(stage, manager, Loop(manager))
        assert len(manager._desk) == 0

    assert explore(on_new_stage, num_actors, interruptions, within_queries=within_queries) > 5


def turns(loop: Loop, count: int = 1) -> dict[str, Callable[[], None]]:
    """The loop as an actor, if it has anything to do: under the lock callers apply their messages themselves."""
    return {"loop": loop.acts(", ".join(["drain"] * count))} if hasattr(loop.manager, "_mailbox") else {}


def settle(loop: Loop) -> None:
    """Whatever is under way comes to its end, without more of it being handed in."""
    if not loop.closed:
        loop.drain()


# -- reservations: a timeout, or the end, at any moment ----------------------------------------------------------

PREALLOCATE = {
    Role.PREFILL: lambda manager, request: manager.reserve_prefill(request, 1.0),
    Role.DECODE: lambda manager, request: manager.reserve_decode(request, 1.0),
}


def reserving(role: Role, plan: str) -> Callable[[Stage, Manager, Loop], None]:
    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        request = make_request(manager, "a", [1, 2, 3, 4, 5], SamplingParams(max_tokens=3))
        outcome = stage.play(caller=lambda: PREALLOCATE[role](manager, request), loop=loop.acts(plan))
        assert outcome["loop"] is None
        got = outcome["caller"]
        settle(loop)
        if isinstance(got, Reservation):
            assert loop.count_ends(request.uid) == int(loop.closed)
            if not loop.closed:
                assert [entry.uid for entry in manager._core.requests()] == [request.uid]
                assert manager.door.uids_of(["a"]) == (request.uid,)
                manager.drop_reservations("a")
                loop.drain()
                assert loop.count_ends(request.uid) == 1
        else:
            assert isinstance(got, TimeoutError) or (loop.closed and isinstance(got, EngineDeadError))
            assert loop.count_ends(request.uid) == 0, "a request that was refused was not accepted"
        assert manager.door.num_inside == 0
        if not loop.closed:
            assert_nothing_held(manager)

    return play


@pytest.mark.parametrize("name", ACCESSES)
@pytest.mark.parametrize("role", list(PREALLOCATE))
@pytest.mark.parametrize("plan", ["drain", "close", "drain, close"])
@PATIENT
def test_a_reservation_is_held_or_was_never_made(
    name: str, role: Role, plan: str, patient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query that timed out leaves nothing allocated; a yes ends exactly once; who is told no never ends."""
    explored(name, monkeypatch, reserving(role, plan), patient=patient, role=role)


@pytest.mark.parametrize(
    ("name", "plan", "patient"), [("v1", "close", True), ("v2", "drain", False)], ids=["v1 closing", "v2 timing out"]
)
def test_a_reservation_is_held_or_was_never_made_with_two_interruptions(
    name: str, plan: str, patient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = reserving(Role.DECODE, plan)
    explored(
        name,
        monkeypatch,
        play,
        patient=patient,
        interruptions=2,
        within_queries=name == "v2",
        role=Role.DECODE,
    )


@pytest.mark.parametrize("name", ACCESSES)
def test_of_two_who_want_the_only_slot_one_gets_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        requests = {who: make_request(manager, who, [1, 2, 3], SamplingParams()) for who in ("first", "second")}
        outcome = stage.play(
            first=lambda: manager.reserve_decode(requests["first"], 1.0),
            second=lambda: manager.reserve_decode(requests["second"], 1.0),
            **turns(loop, 2),
        )
        got = [outcome["first"], outcome["second"]]
        # Under the mailbox one may find that the loop has had its last turn.
        assert sum(isinstance(one, Reservation) for one in got) <= 1
        assert all(one is None or isinstance(one, Reservation | TimeoutError) for one in got)
        loop.drain()
        assert len(manager._core.requests()) == manager.door.num_inside == sum(isinstance(o, Reservation) for o in got)

    explored(
        name, monkeypatch, play, num_actors=3 if name == "v2" else 2, patient=False, role=Role.DECODE, max_num_seqs=1
    )


@pytest.mark.parametrize("name", ACCESSES)
@PATIENT
def test_an_abort_meets_the_reservation_or_nothing(name: str, patient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        request = make_request(manager, "a", [1, 2, 3], SamplingParams())
        outcome = stage.play(
            caller=lambda: manager.reserve_decode(request, 1.0),
            other=lambda: manager.abort("a"),
            **turns(loop, 2),
        )
        loop.drain()
        reserved = isinstance(outcome["caller"], Reservation)
        assert loop.count_ends(request.uid) + manager.door.num_inside == int(reserved)
        assert len(manager._core.requests()) == manager.door.num_inside

    explored(
        name, monkeypatch, play, num_actors=3 if name == "v2" else 2, patient=patient and name != "v2", role=Role.DECODE
    )


# -- every query: an outcome, whatever becomes of the loop -------------------------------------------------------

ASKS: dict[str, tuple[Callable[[Manager], Any], type | None]] = {
    "progress": (lambda manager: manager.progress("someone", 1.0), Progress),
    "progress of an unknown id": (lambda manager: manager.progress("unknown", 1.0), None),
    "audit": (lambda manager: manager.audit(1.0), AuditReport),
    "reset_prefix_cache": (lambda manager: manager.reset_prefix_cache(1.0), int),
    "wait": (lambda manager: manager.await_steps(1.0), None),
    "pause": (lambda manager: manager.pause(timeout=1.0), None),
}


@pytest.mark.parametrize("name", ACCESSES)
@pytest.mark.parametrize("ask", ASKS)
@PATIENT
def test_a_query_while_the_engine_ends_has_an_outcome(
    name: str, ask: str, patient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    question, kind = ASKS[ask]

    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        uid = hand_made(1, "someone").uid
        manager.add(hand_made(1, "someone"))
        outcome = stage.play(caller=lambda: question(manager), loop=loop.acts("drain, close"))
        got = outcome["caller"]
        if isinstance(got, Exception):
            assert isinstance(got, EngineDeadError | TimeoutError)
        else:
            assert isinstance(got, kind) if kind is not None else got is None
        assert loop.count_ends(uid) == 1

    explored(name, monkeypatch, play, patient=patient)


@pytest.mark.parametrize("name", ACCESSES)
def test_a_query_that_the_writer_dies_of_has_an_outcome(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        apply = manager._core.apply

        def broken(query: Any, now: float = 0.0) -> object:
            raise AssertionError("a block has two owners")

        def broken_if_asked(message: Any, now: float = 0.0) -> Effects:
            return broken(message) if isinstance(message, AwaitSteps) else apply(message, now)

        manager._core.ask = broken  # type: ignore[method-assign]
        manager._core.apply = broken_if_asked  # type: ignore[method-assign]

        def live() -> str:
            try:
                for _ in range(2):
                    loop.drain()
                return "lives"
            except AssertionError:
                return "died"
            finally:
                loop.close()

        request = make_request(manager, "a", [1, 2, 3], SamplingParams())
        outcome = stage.play(caller=lambda: manager.reserve_decode(request, 1.0), loop=live)
        assert isinstance(outcome["caller"], EngineDeadError)
        assert not loop.ended and manager.door.num_inside == 0

    explored(name, monkeypatch, play, role=Role.DECODE)


# -- adding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACCESSES)
@pytest.mark.parametrize("plan", ["close", "drain, close"])
def test_a_request_is_refused_or_ends_once_whenever_the_engine_ends(
    name: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        outcome = stage.play(caller=lambda: manager.add(hand_made(1, "a")), loop=loop.acts(plan))
        refused = isinstance(outcome["caller"], EngineDeadError)
        assert refused or outcome["caller"] is None
        assert loop.count_ends(1) == int(not refused)
        assert manager.door.num_inside == 0

    explored(name, monkeypatch, play, interruptions=2)


@pytest.mark.parametrize("name", ACCESSES)
@pytest.mark.parametrize("end", ["abort", "finish"])
def test_an_end_that_comes_while_the_manager_closes_loses_no_end_and_makes_no_second(
    name: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        manager.add(hand_made(1, "a"))
        outcome = stage.play(caller=lambda: getattr(manager, end)("a"), loop=loop.close)
        assert outcome["caller"] is None or isinstance(outcome["caller"], EngineDeadError)
        assert loop.count_ends(1) == 1

    explored(name, monkeypatch, play, interruptions=2)


@pytest.mark.parametrize("name", ACCESSES)
@pytest.mark.parametrize("same", ["request id", "uid", "both"])
def test_of_two_who_bring_the_same_id_one_comes_in(name: str, same: str, monkeypatch: pytest.MonkeyPatch) -> None:
    second = {"request id": (2, "a"), "uid": (1, "b"), "both": (1, "a")}[same]

    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        outcome = stage.play(
            first=lambda: manager.add(hand_made(1, "a")),
            second=lambda: manager.add(hand_made(*second)),
        )
        got = [outcome["first"], outcome["second"]]
        assert sorted(map(str, map(type, got))) == sorted(map(str, (type(None), DuplicateRequestError)))
        loop.drain()
        assert manager.door.num_inside == len(manager.door.inside()) == len(manager._core.requests()) == 1
        (claim,) = manager.door.inside()
        assert manager.door.uids_of([claim.request_id]) == (claim.uid,)

    explored(name, monkeypatch, play)


@pytest.mark.parametrize("name", ACCESSES)
def test_an_abort_cannot_hit_a_request_whose_uid_a_refused_one_brought(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        manager.add(hand_made(1, "a"))
        outcome = stage.play(caller=lambda: manager.add(hand_made(1, "b")), other=lambda: manager.abort("b"))
        assert isinstance(outcome["caller"], DuplicateRequestError)
        loop.drain()
        assert not loop.ended
        assert manager.door.uids_of(["a", "b"]) == (1,)

    explored(name, monkeypatch, play)


@pytest.mark.parametrize("name", ACCESSES)
def test_the_last_place_is_given_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        outcome = stage.play(
            first=lambda: manager.add(hand_made(1, "a")),
            second=lambda: manager.add(hand_made(2, "b")),
        )
        assert sum(isinstance(one, QueueFullError) for one in outcome.values()) == 1
        assert manager.door.num_inside == 1

    explored(name, monkeypatch, play, max_num_seqs=1, max_waiting=0)


# -- barriers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACCESSES)
def test_whatever_is_added_while_all_is_cleared_ends_once_or_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        manager.add(hand_made(1, "before"))
        outcome = stage.play(caller=lambda: manager.add(hand_made(2, "during")), operator=manager.clear, **turns(loop))
        assert not any(outcome.values())
        loop.drain()
        assert loop.count_ends(1) == 1
        assert loop.count_ends(2) + len(manager._core.requests()) == 1
        assert manager.door.num_inside == len(manager._core.requests())

    explored(name, monkeypatch, play, num_actors=3 if name == "v2" else 2)


@pytest.mark.parametrize("name", ACCESSES)
@pytest.mark.parametrize("mode", ["abort", "preempt"])
def test_a_request_that_comes_while_the_engine_is_paused_is_refused_ended_or_kept(
    name: str, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        outcome = stage.play(
            caller=lambda: manager.add(hand_made(1, "a")),
            operator=lambda: manager.pause(mode, timeout=1.0),
            **turns(loop, 2),
        )
        loop.drain()
        assert manager.door.paused and manager.snapshot().paused
        refused = isinstance(outcome["caller"], EnginePausedError)
        assert refused or outcome["caller"] is None
        kept = len(manager._core.requests())
        assert loop.count_ends(1) + kept == int(not refused)
        assert manager.door.num_inside == kept
        assert mode == "abort" or not loop.ended
        manager.resume()
        batch = manager.schedule()
        assert (batch is not None) == bool(kept), "what was kept goes on"

    explored(name, monkeypatch, play, num_actors=3 if name == "v2" else 2, patient=False)


@pytest.mark.parametrize("name", ACCESSES)
@pytest.mark.parametrize("paused", [False, True])
def test_where_pause_and_resume_meet_door_and_core_agree_in_the_end(
    name: str, paused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an engine could take requests and compute nothing, or compute and take none, for ever."""

    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        if paused:
            manager.door.pause()
            manager._tell(PAUSE)
            loop.drain()
        stage.play(pausing=lambda: manager.pause(timeout=1.0), resuming=manager.resume, **turns(loop))
        loop.drain()
        assert manager.door.paused == manager.snapshot().paused

    explored(name, monkeypatch, play, num_actors=3 if name == "v2" else 2, patient=False)


@pytest.mark.parametrize("name", ACCESSES)
def test_the_loop_refuses_itself_while_another_thread_asks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(stage: Stage, manager: Manager, loop: Loop) -> None:
        def live() -> Any:
            loop.drain()
            try:
                return manager.pause(timeout=1.0)
            except QueryError as error:
                loop.drain()
                return str(error)

        outcome = stage.play(caller=lambda: manager.audit(1.0), loop=live)
        assert outcome["loop"] == "asked from the thread that has to answer"
        assert isinstance(outcome["caller"], AuditReport | TimeoutError)
        assert not manager.door.paused

    explored(name, monkeypatch, play, patient=False)
