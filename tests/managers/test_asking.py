"""Queries: answered while the device works, or refused, or timed out; and then nothing is held."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from headway.config import Role
from headway.errors import (
    DuplicateRequestError,
    EngineDeadError,
    EnginePausedError,
    QueryError,
    QueueFullError,
    RequestError,
)
from headway.managers import Manager
from headway.managers import manager as manager_module
from headway.request import FinishReason, Request, RequestStatus
from headway.sampling import SamplingParams
from headway.scheduler import AuditReport, AwaitSteps, Effects, Message, Progress, Query, Scheduler
from tests.managers.driving import (
    PATIENCE,
    Asking,
    Driver,
    answer_to,
    asking,
    every_manager,
    hand_made,
    make,
    make_request,
    prompt_of,
)

SHORT = 0.001  # seconds; for waits that are meant to end by timeout


@dataclass(frozen=True)
class Question:
    """role: of the engine that can answer. ask: with a request that is not inside, and a timeout."""

    role: Role
    ask: Callable[[Manager, Request, Any], Any]


QUESTIONS = {
    "reserve_prefill": Question(Role.PREFILL, lambda m, request, t: m.reserve_prefill(request, timeout=t)),
    "reserve_decode": Question(Role.DECODE, lambda m, request, t: m.reserve_decode(request, timeout=t)),
    "reserve_decode for a moment": Question(
        Role.DECODE, lambda m, request, t: m.reserve_decode(request, expires_after=1.0, timeout=t)
    ),
    "consume_lease": Question(Role.MIXED, lambda m, request, t: m.consume_lease(1, 0, timeout=t)),
    "progress": Question(Role.MIXED, lambda m, request, t: m.progress("someone", timeout=t)),
    "progress of an unknown id": Question(Role.MIXED, lambda m, request, t: m.progress("unknown", timeout=t)),
    "audit": Question(Role.MIXED, lambda m, request, t: m.audit(timeout=t)),
    "reset_prefix_cache": Question(Role.MIXED, lambda m, request, t: m.reset_prefix_cache(timeout=t)),
    "await_steps": Question(Role.MIXED, lambda m, request, t: m.await_steps(t)),
    "pause": Question(Role.MIXED, lambda m, request, t: m.pause(timeout=t)),
}
RESERVING = ["reserve_prefill", "reserve_decode", "reserve_decode for a moment"]
IMMEDIATE = [name for name in QUESTIONS if name not in ("await_steps", "pause")]


def a_request(manager: Manager, request_id: str = "a", length: int = 9, max_tokens: int = 5) -> Request:
    return make_request(manager, request_id, prompt_of(1, length), SamplingParams(max_tokens=max_tokens))


def bound(driver: Driver, question: str, timeout: Any = PATIENCE, request_id: str = "a") -> Callable[[], Any]:
    """The question, of a request of its own."""
    request = a_request(driver.manager, request_id)
    return lambda: QUESTIONS[question].ask(driver.manager, request, timeout)


@pytest.fixture
def asked(name: str, question: str) -> Driver:
    """One whom the question can be asked, where "someone" waits or runs."""
    return Driver(make(name, role=QUESTIONS[question].role))


def held(manager: Manager) -> tuple[int, ...]:
    """What is held, by the manager's own books."""
    report = manager._core.audit_report()
    assert report.ok, report.problems
    return (
        report.num_requests,
        report.num_slots_used,
        report.num_blocks_referenced,
        manager.door.num_inside,
        len(manager.door.inside()),
        len(manager._desk),
    )


NOTHING = (0, 0, 0, 0, 0, 0)


# -- answers -----------------------------------------------------------------------------------------------------


@every_manager
def test_a_reservation_holds_slot_and_blocks_in_the_callers_name(name: str) -> None:
    for role, ask, num_blocks in (
        (Role.PREFILL, Manager.reserve_prefill, 3),
        (Role.DECODE, Manager.reserve_decode, 3),
    ):
        driver = Driver(make(name, role=role))
        request = a_request(driver.manager, length=11)  # P: 11 tokens; D: 12; in blocks of 4
        reservation = driver.ask(lambda ask=ask, driver=driver, request=request: ask(driver.manager, request))  # type: ignore[misc]
        assert reservation is not None
        if name == "v0":
            num_blocks = driver.manager.config.blocks_for(11 + request.max_tokens)
        assert (reservation.uid, reservation.slot, reservation.num_cached_tokens) == (request.uid, 0, 0)
        assert len(set(reservation.blocks.tolist())) == len(reservation.blocks) == num_blocks
        assert reservation.blocks.dtype == np.int32
        assert held(driver.manager) == (1, 1, num_blocks, 1, 1, 0)
        assert driver.manager.num_free_slots() == 3
        assert driver.manager.snapshot().num_slots_spanned == 1
        assert driver.manager.snapshot().num_reserved == 1


def test_a_reservation_finds_what_is_cached(name: str) -> None:
    driver = Driver(make(name, role=Role.PREFILL))
    driver.next_pass = driver.manager.prefill_schedule
    driver.add("before", prompt_of(1, 9))
    driver.run()
    reservation = driver.ask(bound(driver, "reserve_prefill"))
    assert reservation.num_cached_tokens == 8


@every_manager
@pytest.mark.parametrize("question", RESERVING)
@pytest.mark.parametrize("lacking", ["slots", "blocks", "turn"])
def test_without_room_the_answer_is_no_and_nothing_is_held(name: str, question: str, lacking: str) -> None:
    """Room, or a turn: on D no request passes the requests that wait."""
    role = QUESTIONS[question].role
    if lacking == "turn" and role is Role.PREFILL:
        pytest.skip("on P a waiting request is admitted as its message is applied")
    changes: dict[str, Any] = {"num_blocks": 18} if lacking == "blocks" else {"max_num_seqs": 1}
    driver = Driver(make(name, role=role, **changes))
    manager = driver.manager
    if lacking == "turn":
        driver.add("waits", max_tokens=4)
        driver.manager.drain()
    else:
        length = 55 if lacking == "blocks" else 9
        first = a_request(manager, "first", length=length)
        assert driver.ask(lambda: QUESTIONS[question].ask(manager, first, PATIENCE))
    before = held(manager)
    answer = driver.ask(lambda: QUESTIONS[question].ask(manager, a_request(manager, length=20), PATIENCE))
    assert not answer
    assert held(manager) == before
    assert manager.door.uids_of(["a"]) == ()
    manager.drop_reservations("first")
    driver.run()
    assert driver.ask(bound(driver, question)), "with room again the same request id may ask again"


def test_a_yes_that_holds_for_a_moment_holds_what_it_promises(name: str) -> None:
    """A check before an act would be worth nothing: another one could come in between."""
    driver = Driver(make(name, role=Role.DECODE, max_num_seqs=1))
    assert driver.ask(bound(driver, "reserve_decode for a moment")) is not None
    assert driver.ask(bound(driver, "reserve_decode for a moment", request_id="b")) is None
    expected = answer_to(prompt_of(1, 9), 5)
    driver.manager.start_decode("a", expected[0])
    driver.run()
    assert list(driver.history.tokens.values()) == [expected]
    driver.assert_empty()


def test_progress_tells_how_far_a_request_is_wherever_it_stands(driver: Driver) -> None:
    uid = driver.add("a", prompt_of(1, 9), max_tokens=5)
    seen = [driver.ask(lambda: driver.manager.progress("a"))]
    for _ in range(2):
        driver.step()
        seen.append(driver.ask(lambda: driver.manager.progress(uid)))
    assert [(one.status, one.num_output_tokens, one.num_computed_tokens) for one in seen if one is not None] == [
        (RequestStatus.WAITING, 0, 0),
        (RequestStatus.RUNNING_DECODE, 1, 9),
        (RequestStatus.RUNNING_DECODE, 2, 10),
    ]
    last = seen[-1]
    assert isinstance(last, Progress)
    assert (last.uid, last.request_id, last.num_prompt_tokens, last.num_preemptions) == (uid, "a", 9, 0)
    driver.run()
    assert driver.ask(lambda: driver.manager.progress("a")) is None
    assert driver.ask(lambda: driver.manager.progress(uid)) is None
    assert driver.ask(lambda: driver.manager.progress("never was")) is None


def test_an_audit_names_owners(driver: Driver) -> None:
    driver.add("a", prompt_of(1, 9))
    driver.step()
    report = driver.ask(driver.manager.audit)
    assert isinstance(report, AuditReport) and report.ok
    assert [(owner.name, owner.kind) for owner in report.owners] == [("a", "slot")]


def test_resetting_the_cache_counts_what_was_cached_and_lets_requests_go_on(driver: Driver) -> None:
    uid = driver.add("a", prompt_of(1, 9), max_tokens=5)
    driver.step()
    assert driver.ask(driver.manager.reset_prefix_cache) == 2
    assert driver.ask(driver.manager.reset_prefix_cache) == 0
    driver.run()
    assert driver.history.tokens[uid] == answer_to(prompt_of(1, 9), 5)
    again = driver.add("b", prompt_of(1, 9))
    driver.run()
    assert driver.history.started[again] == 0


# -- while the device works --------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", IMMEDIATE)
def test_a_query_is_answered_while_a_step_is_on_the_device(asked: Driver, question: str) -> None:
    if asked.manager.config.role is Role.PREFILL:
        asked.next_pass = asked.manager.prefill_schedule
    uid = asked.add("someone", prompt_of(2, 9))
    batch = asked.launch()
    assert batch is not None
    answer = asked.ask(bound(asked, question))
    assert (answer is None) == (question == "progress of an unknown id")
    assert asked.manager.snapshot().num_in_flight == 1, "the step is still out"
    asked.complete(batch)
    asked.manager.drop_reservations("a")
    asked.run()
    assert asked.history.reasons([uid]) == [FinishReason.LENGTH]
    asked.assert_empty()


def test_waiting_for_the_worker_ends_with_the_steps_that_were_out_and_not_with_later_ones(driver: Driver) -> None:
    driver.add("a", max_tokens=9)
    first, second = driver.launch(), driver.launch()
    assert first is not None and second is not None
    waiting = driver.asking(lambda: driver.manager.await_steps(PATIENCE))
    driver.manager.drain()
    third = driver.launch()
    assert third is not None
    driver.complete(first)
    assert not waiting.done()
    driver.complete(second)
    assert waiting.answer() is None
    assert driver.manager.snapshot().num_in_flight == 1
    driver.complete(third)
    assert driver.ask(lambda: driver.manager.await_steps(PATIENCE)) is None
    driver.run()


def test_waiting_for_the_worker_has_an_end(driver: Driver) -> None:
    driver.add("a")
    batch = driver.launch()
    assert batch is not None
    with pytest.raises(TimeoutError, match=r"the device was not idle within 0\.001 s$"):
        driver.ask(lambda: driver.manager.await_steps(SHORT))
    assert len(driver.manager._desk) == 0
    driver.complete(batch)
    driver.run()


# -- what cannot be asked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", RESERVING)
@pytest.mark.parametrize("role", list(Role))
def test_a_query_for_another_role_is_an_error_to_its_caller_alone(name: str, question: str, role: Role) -> None:
    if role is QUESTIONS[question].role:
        pytest.skip("the right one")
    driver = Driver(make(name, role=role))
    if role is Role.PREFILL:
        driver.next_pass = driver.manager.prefill_schedule
    uid = driver.add("someone")
    with pytest.raises(QueryError, match=f"asked of an engine whose role is {role}"):
        driver.ask(bound(driver, question))
    assert [claim.request_id for claim in driver.manager.door.inside()] == ["someone"]
    again = driver.add("a")
    driver.run()
    assert driver.history.reasons([uid, again]) == [FinishReason.LENGTH] * 2
    driver.assert_empty()


@pytest.mark.parametrize("question", RESERVING)
def test_a_request_that_can_never_fit_is_an_error_and_not_a_no(asked: Driver, question: str) -> None:
    request = hand_made(7, "a", max_tokens=1000)
    with pytest.raises(QueryError, match=r"exceed max_model_len \(64\)"):
        asked.ask(lambda: QUESTIONS[question].ask(asked.manager, request, PATIENCE))
    assert held(asked.manager) == NOTHING


@pytest.mark.parametrize("question", RESERVING)
def test_nothing_can_be_held_for_a_request_that_is_to_be_prepared(asked: Driver, question: str) -> None:
    request = make_request(asked.manager, "a", [1, 2], SamplingParams(), preprocess=b"an image")
    with pytest.raises(RequestError, match="'a' has to be prepared first"):
        asked.ask(lambda: QUESTIONS[question].ask(asked.manager, request, PATIENCE))
    assert held(asked.manager) == NOTHING


@pytest.mark.parametrize("question", RESERVING)
def test_a_reservation_comes_in_by_the_same_door_as_every_request(name: str, question: str) -> None:
    driver = Driver(make(name, role=QUESTIONS[question].role, max_num_seqs=1, max_waiting=0))
    manager = driver.manager
    assert driver.ask(bound(driver, question))
    for request, error in (
        (a_request(manager, "b"), QueueFullError),
        (a_request(manager, "a"), QueueFullError),  # the place is asked for first
    ):
        with pytest.raises(error):
            driver.ask(lambda request=request: QUESTIONS[question].ask(manager, request, PATIENCE))  # type: ignore[misc]
    with pytest.raises(QueueFullError):
        driver.add("b")
    manager.drop_reservations("a")
    driver.settle()
    assert manager.door.num_inside == 0


@pytest.mark.parametrize("question", RESERVING)
def test_a_duplicate_is_refused_while_the_first_one_is_still_asking(asked: Driver, question: str) -> None:
    manager = asked.manager
    first, second = a_request(manager), a_request(manager)
    if type(manager).__name__ == "LockFreeManager":
        asking_first = asked.asking(lambda: QUESTIONS[question].ask(manager, first, PATIENCE))
    else:
        assert asked.ask(lambda: QUESTIONS[question].ask(manager, first, PATIENCE))
    with pytest.raises(DuplicateRequestError, match="'a'"):
        asked.ask(lambda: QUESTIONS[question].ask(manager, second, PATIENCE))
    with pytest.raises(DuplicateRequestError):
        manager.add(second)
    asked.settle()
    if type(manager).__name__ == "LockFreeManager":
        assert asking_first.answer()
    assert held(manager)[0] == 1
    manager.abort("a")
    asked.settle()
    assert list(asked.history.ends) == [first.uid]
    asked.assert_empty()


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    "timeout", [0, -1, math.nan, math.inf, -math.inf, None, "x", True, threading.TIMEOUT_MAX * 2, [1.0]], ids=repr
)
def test_a_wait_without_an_end_is_refused_before_anything_is_handed_in(
    asked: Driver, question: str, timeout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, handed_in = asked.manager, []
    for way in ("_put", "_put_query"):
        monkeypatch.setattr(manager, way, lambda *what: handed_in.append(what))
    with pytest.raises(ValueError, match="timeout must be a number of seconds above 0"):
        bound(asked, question, timeout)()
    assert handed_in == []
    assert not manager.door.paused
    assert held(manager) == NOTHING


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("timeout", [1, np.float32(1), np.float64(1), 0.5])
def test_any_number_of_seconds_will_do(asked: Driver, question: str, timeout: Any) -> None:
    asked.ask(bound(asked, question, timeout))


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_loop_cannot_ask_itself_and_nothing_has_changed(asked: Driver, question: str) -> None:
    asked.manager.drain()
    uid = asked.add("someone")
    asked.manager.drain()
    before = held(asked.manager), asked.manager.snapshot()
    with pytest.raises(QueryError, match="asked from the thread that has to answer"):
        bound(asked, question)()
    asked.manager.drain()
    assert (held(asked.manager), asked.manager.snapshot()) == before
    assert not asked.manager.door.paused, "not paused by half"
    asked.manager.abort([uid])
    asked.run()
    asked.assert_empty()


# -- timeouts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_query_that_is_not_drawn_times_out_and_never_runs(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the mailbox: the loop is stuck, or there is none yet."""
    driver = Driver(make("v2", role=QUESTIONS[question].role))
    applied: list[Message] = []
    apply, ask = driver.manager._core.apply, driver.manager._core.ask

    def noted(message: Message, now: float = 0.0) -> Effects:
        applied.append(message)
        return apply(message, now)

    def noted_query(query: Query, now: float = 0.0) -> object:
        applied.append(query)
        return ask(query, now)

    monkeypatch.setattr(driver.manager._core, "apply", noted)
    monkeypatch.setattr(driver.manager._core, "ask", noted_query)
    with pytest.raises(TimeoutError):
        driver.asking(bound(driver, question, SHORT)).answer()
    assert held(driver.manager) == NOTHING
    driver.settle()
    assert not any(isinstance(message, Query | AwaitSteps) for message in applied if question not in ("pause", WAIT))
    assert held(driver.manager) == NOTHING
    if question in RESERVING:
        assert driver.ask(bound(driver, question)), "it may ask again"


WAIT = "await_steps"


@pytest.mark.parametrize("question", [name for name in QUESTIONS if name != "pause"])
def test_a_lock_that_is_held_too_long_is_a_timeout(question: str) -> None:
    driver = Driver(make("v1", role=QUESTIONS[question].role))
    with driver.manager._lock, pytest.raises(TimeoutError):  # type: ignore[attr-defined]
        driver.asking(bound(driver, question, SHORT)).answer()
    assert held(driver.manager) == NOTHING
    driver.ask(bound(driver, question))


@pytest.mark.parametrize("question", RESERVING)
def test_a_reservation_that_is_not_taken_up_ends_by_the_clock(
    asked: Driver, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(manager_module.time, "monotonic", lambda: now[0])
    assert asked.asking(bound(asked, question)) is not None
    asked.settle()
    config = asked.manager.config
    seconds = 1.0 if "moment" in question else config.reservation_timeout
    assert asked.manager.snapshot().next_deadline == 100.0 + seconds
    now[0] += seconds - 0.01
    asked.settle()
    assert not asked.history.ends
    now[0] += 0.02
    asked.settle()
    (end,) = asked.history.ends.values()
    assert (end.reason, end.error) == (FinishReason.ERROR, "its reservation was not taken up in time")
    asked.assert_empty()


# -- the end of the engine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS)
def test_after_the_end_a_query_is_told_so(asked: Driver, question: str) -> None:
    asked.manager.close(FinishReason.ERROR, "it broke")
    with pytest.raises(EngineDeadError, match="it broke"):
        bound(asked, question)()
    assert asked.manager.door.num_inside == 0


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_query_that_is_pending_when_the_engine_ends_fails(question: str) -> None:
    driver = Driver(make("v2", role=QUESTIONS[question].role))
    one = driver.asking(bound(driver, question))
    driver.history.take(driver.manager.close(FinishReason.ABORT, "shut down"))
    with pytest.raises(EngineDeadError, match="shut down"):
        one.answer()
    assert not driver.history.ends, "a request that was refused has not been accepted"
    assert held(driver.manager) == NOTHING


@pytest.mark.parametrize("question", [WAIT, "pause"])
def test_a_query_that_waits_for_the_device_when_the_engine_ends_fails(driver: Driver, question: str) -> None:
    driver.add("someone")
    assert driver.launch() is not None
    one = driver.asking(bound(driver, question))
    driver.settle()
    assert not one.done()
    driver.history.take(driver.manager.close(FinishReason.ABORT, "shut down"))
    with pytest.raises(EngineDeadError, match="shut down"):
        one.answer()
    assert len(driver.manager._desk) == 0


@pytest.mark.parametrize("question", IMMEDIATE)
def test_a_query_that_the_writer_dies_of_fails(asked: Driver, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is claimed and will never be answered; the driver of the loop closes."""

    def broken(core: Scheduler, query: Query, now: float = 0.0) -> object:
        raise AssertionError("a block has two owners")

    monkeypatch.setattr(Scheduler, "ask", broken)
    one = asked.asking(bound(asked, question))
    with pytest.raises(AssertionError, match="two owners"):
        asked.manager.drain()
    assert not one.done()
    assert not asked.manager.close(FinishReason.ERROR, "it broke").ended
    with pytest.raises(EngineDeadError, match="it broke"):
        one.answer()
    assert held(asked.manager) == NOTHING


@pytest.mark.parametrize("question", RESERVING)
def test_a_yes_is_an_accepted_request_that_ends_once_also_when_the_engine_does(asked: Driver, question: str) -> None:
    assert asked.ask(bound(asked, question))
    (claim,) = asked.manager.door.inside()
    asked.history.take(asked.manager.close(FinishReason.ABORT, "shut down"))
    assert [(end.uid, end.reason) for end in asked.history.ends.values()] == [(claim.uid, FinishReason.ABORT)]
    assert asked.manager.door.num_inside == 0


# -- who may come in while the engine is paused ------------------------------------------------------------------


@pytest.mark.parametrize("question", RESERVING)
def test_a_paused_engine_holds_nothing_for_a_query(asked: Driver, question: str) -> None:
    asked.ask(asked.manager.pause)
    with pytest.raises(EnginePausedError):
        asked.ask(bound(asked, question))
    assert held(asked.manager) == NOTHING
    asked.manager.resume()
    assert asked.ask(bound(asked, question))


def test_an_answer_and_its_caller_find_each_other_however_many_ask(driver: Driver) -> None:
    """Each gets its own."""
    uids = [driver.add(f"r{i}", prompt_of(i, 3 + i)) for i in range(6)]
    questions: list[Asking[Any]] = [
        asking(driver.manager, lambda i=i: driver.manager.progress(f"r{i}"))
        for i in (3, 1, 5, 0, 2, 4)  # type: ignore[misc]
    ]
    driver.settle()
    answers = [one.answer() for one in questions]
    assert [(answer.uid, answer.num_prompt_tokens) for answer in answers] == [
        (uids[i], 3 + i) for i in (3, 1, 5, 0, 2, 4)
    ]
