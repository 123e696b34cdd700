"""Every accepted request ends exactly once: finished or aborted in every state, and when the manager is closed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from headway.errors import DuplicateRequestError, EngineDeadError, QueueFullError
from headway.managers import Manager
from headway.request import FinishReason, RequestStatus
from headway.sampling import SamplingParams
from headway.scheduler import DeviceLost, Effects, StepResult
from tests.history import History
from tests.managers.driving import PATIENCE, Asking, Driver, answer_to, hand_made, make, make_request, prompt_of

# -- finish and abort, in every state ----------------------------------------------------------------------------

ENDINGS: dict[FinishReason, Callable[[Manager], Callable[..., None]]] = {
    FinishReason.STOP: lambda manager: manager.finish,
    FinishReason.ABORT: lambda manager: manager.abort,
}


def bring_to(driver: Driver, state: RequestStatus) -> int:
    """A request in that state; returns its uid. Beside it runs another, "other"."""
    driver.add("other", prompt_of(1, 3), max_tokens=40)
    driver.step()
    uid = driver.add("it", prompt_of(2, 40), max_tokens=20)
    match state:
        case RequestStatus.RUNNING_PREFILL:
            driver.step()
        case RequestStatus.RUNNING_DECODE:
            for _ in range(4):
                driver.step()
        case RequestStatus.PREEMPTED:
            for _ in range(4):
                driver.step()
            driver.manager._core._moves.preempt(driver.manager._core._state.entries[uid])
    driver.manager.drain()
    entry = driver.manager._core._state.entries[uid]
    assert entry.status is state
    return uid


STATES = [
    RequestStatus.WAITING,
    RequestStatus.RUNNING_PREFILL,
    RequestStatus.RUNNING_DECODE,
    RequestStatus.PREEMPTED,
]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("reason", ENDINGS)
@pytest.mark.parametrize("by", ["request id", "uid"])
@pytest.mark.parametrize("in_flight", [False, True], ids=["between steps", "during a step"])
def test_a_request_can_be_ended_in_every_state(
    name: str, state: RequestStatus, reason: FinishReason, by: str, in_flight: bool
) -> None:
    """At once, also while the device works on it: what the device says of it later is dropped."""
    driver = Driver(make(name, max_num_batched_tokens=16))
    uid = bring_to(driver, state)
    batch = driver.launch() if in_flight else None
    end = ENDINGS[reason](driver.manager)
    for _ in range(2):  # the second time it is unknown
        end(["it" if by == "request id" else uid])
    driver.settle()
    assert driver.history.ends[uid].reason is reason
    assert driver.history.ends[uid].request_id == "it"
    driver.manager._core.audit()
    if batch is not None:
        driver.complete(batch)
    end([uid])
    driver.run()
    (other,) = set(driver.history.ends) - {uid}
    assert driver.history.tokens[other] == answer_to(prompt_of(1, 3), 40)
    driver.assert_empty()


@pytest.mark.parametrize("reason", ENDINGS)
def test_unknown_ids_are_a_no_op(driver: Driver, reason: FinishReason) -> None:
    end = ENDINGS[reason](driver.manager)
    uid = driver.add("a")
    end(["unknown", uid + 1, -5, 10**18])
    end([])
    end(iter(()))
    driver.run()
    assert driver.history.reasons([uid]) == [FinishReason.LENGTH]
    end(["a", uid])
    driver.settle()
    assert len(driver.history.ends) == 1


def test_an_abort_for_an_unknown_id_does_not_hit_a_later_request_of_that_id(driver: Driver) -> None:
    driver.manager.abort(["a"])
    uid = driver.add("a", max_tokens=2)
    driver.run()
    assert driver.history.tokens[uid] == answer_to([1, 2, 3], 2)


@pytest.mark.parametrize("reason", ENDINGS)
def test_an_end_never_overtakes_its_own_add(driver: Driver, reason: FinishReason) -> None:
    uids = [driver.add(f"r{i}") for i in range(3)]
    ENDINGS[reason](driver.manager)(["r1"])
    driver.settle()
    assert driver.history.reasons(driver.history.ends) == [reason]
    assert list(driver.history.ends) == [uids[1]]
    driver.run()
    assert uids[1] not in driver.history.tokens
    driver.assert_empty()


def test_several_ends_in_one_call(driver: Driver) -> None:
    uids = [driver.add(f"r{i}") for i in range(6)]
    driver.step()
    driver.manager.abort(["r1", uids[2], "r1", "unknown", "r5"])
    driver.settle()
    assert list(driver.history.ends) == [uids[1], uids[2], uids[5]]
    driver.run()
    assert len(driver.history.ends) == 6


def test_the_id_of_an_ended_request_is_free_at_once_and_its_late_token_is_not_the_newcomers(driver: Driver) -> None:
    first = driver.add("a", prompt_of(1, 3), max_tokens=9)
    driver.step()
    batch = driver.launch()
    assert batch is not None
    late = driver.result(batch)
    driver.manager.abort(["a"])
    driver.settle()
    second = driver.add("a", prompt_of(2, 3), max_tokens=3)
    driver.manager.drain()
    driver.history.take(driver.manager.update(late))
    driver.run()
    assert driver.history.tokens[first] == answer_to(prompt_of(1, 3), 1)
    assert driver.history.tokens[second] == answer_to(prompt_of(2, 3), 3)


# -- failures of the device --------------------------------------------------------------------------------------


def test_a_failed_step_ends_its_requests_and_no_others(name: str) -> None:
    driver = Driver(make(name, max_num_seqs=2))
    uids = [driver.add(f"r{i}", prompt_of(i, 5)) for i in range(4)]
    batch = driver.launch()
    assert batch is not None
    result = driver.result(batch)
    driver.history.take(driver.manager.update(StepResult(batch.step_id, result.tokens[:0], error="out of memory")))
    assert driver.history.reasons(uids[:2]) == [FinishReason.ERROR] * 2
    assert driver.history.ends[uids[0]].error == "out of memory"
    driver.manager._core.audit()
    driver.run()
    assert driver.history.reasons(uids[2:]) == [FinishReason.LENGTH] * 2
    driver.assert_empty()


def test_a_lost_device_ends_what_runs_and_what_waits_goes_on(name: str) -> None:
    driver = Driver(make(name, max_num_seqs=2))
    uids = [driver.add(f"r{i}", prompt_of(i, 5)) for i in range(4)]
    driver.step()
    batch = driver.launch()
    assert batch is not None
    late = driver.result(batch)
    driver.manager.post_result(DeviceLost("gone"))
    driver.settle()
    assert driver.history.reasons(uids[:2]) == [FinishReason.ERROR] * 2
    assert driver.manager.snapshot().num_in_flight == 0
    driver.history.take(driver.manager.update(late))
    driver.run()
    assert driver.history.reasons(uids[2:]) == [FinishReason.LENGTH] * 2
    driver.assert_empty()


def test_what_breaks_under_a_callers_message_is_the_loops_business() -> None:
    """The caller is not bothered, nothing more is applied to a core that cannot be trusted, and the loop is told.

    Under the lock, where callers apply their messages themselves.
    """
    driver = Driver(make("v1"))
    manager, applied = driver.manager, []
    driver.add("a")

    def broken(message: Any, now: float = 0.0) -> Effects:
        applied.append(message)
        raise AssertionError("a block has two owners")

    manager._core.apply = broken  # type: ignore[method-assign]
    manager.abort(["a"])
    driver.add("b")
    manager.finish(["b"])
    assert len(applied) == 1
    manager.wait(1e9)
    for look in (manager.drain, manager.schedule, manager.prefill_schedule):
        with pytest.raises(AssertionError, match="a block has two owners"):
            look()
    driver.history.take(manager.close(FinishReason.ERROR, "it broke"))
    assert [end.request_id for end in driver.history.ends.values()] == ["a", "b"]


# -- close -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason, message", [(FinishReason.ABORT, None), (FinishReason.ERROR, "it broke")])
def test_closing_ends_everything_once_with_the_reason(name: str, reason: FinishReason, message: str | None) -> None:
    driver = Driver(make(name, max_num_seqs=2))
    manager = driver.manager
    uids = [driver.add(f"r{i}", max_tokens=9) for i in range(4)]  # two run, two wait
    driver.step()
    batch = driver.launch()
    assert batch is not None
    manager.abort(["r1"])
    uids.append(driver.add("not applied yet"))
    driver.history.take(manager.close(reason, message))
    assert set(driver.history.ends) == set(uids)
    for uid in (uids[0], uids[2], uids[3], uids[4]):
        assert (driver.history.ends[uid].reason, driver.history.ends[uid].error) == (reason, message)
    assert manager.door.num_inside == 0
    assert manager.close(FinishReason.ERROR) == Effects()


def test_closing_hands_out_the_effects_that_were_not_taken(driver: Driver) -> None:
    driver.add("a")
    driver.manager.abort(["a"])
    driver.manager.drain()
    (end,) = driver.manager.close(FinishReason.ERROR, "late").ended
    assert (end.request_id, end.reason) == ("a", FinishReason.ABORT)


def test_after_closing_nothing_is_accepted_and_nothing_applied(driver: Driver) -> None:
    manager = driver.manager
    uid = driver.add("a")
    batch = driver.launch()
    assert batch is not None
    result = driver.result(batch)
    driver.history.take(manager.close(FinishReason.ERROR, "it broke"))
    with pytest.raises(EngineDeadError, match="it broke"):
        driver.add("b")
    for end in (manager.abort, manager.finish):
        with pytest.raises(EngineDeadError, match="it broke"):
            end(["a", uid])
    manager.post_result(result)
    assert not manager.take_effects()
    assert manager.num_free_slots() == 4
    assert driver.history.reasons([uid]) == [FinishReason.ERROR]


# -- close against callers ---------------------------------------------------------------------------------------


def test_an_abort_that_comes_while_the_manager_closes_loses_no_end(driver: Driver) -> None:
    """The caller arrives when the last effects have been taken and the requests inside are about to be ended."""
    manager, uid = driver.manager, driver.add("a")
    driver.step()
    inside = manager.door.inside

    def caller_first() -> Any:
        told = Asking(lambda: manager.abort(["a"])).exception(PATIENCE)
        assert isinstance(told, EngineDeadError)
        return inside()

    manager.door.inside = caller_first  # type: ignore[method-assign]
    driver.history.take(manager.close(FinishReason.ERROR, "it broke"))
    assert list(driver.history.ends) == [uid]


def test_a_request_that_passed_the_door_when_the_manager_closed_is_refused(driver: Driver) -> None:
    """It came in after those inside were ended, so nothing else would end it."""
    manager, enter = driver.manager, driver.manager.door.enter

    def closed_meanwhile(request: Any) -> None:
        closed, manager.door.closed = manager.door.closed, None  # the look at the door was before the closing
        enter(request)
        manager.door.closed = closed

    driver.history.take(manager.close(FinishReason.ABORT))
    manager.door.enter = closed_meanwhile  # type: ignore[method-assign]
    with pytest.raises(EngineDeadError):
        driver.add("a")
    assert manager.door.num_inside == 0
    assert not driver.history.ends


def test_a_request_that_the_closing_ended_was_accepted_also_if_its_id_is_taken_again(driver: Driver) -> None:
    """A has entered; the closing ends it; B, already at the door, takes the id. A counts as ended, B as refused."""
    manager, put = driver.manager, driver.manager._put
    a_told, b_entered, a_done = threading.Event(), threading.Event(), threading.Event()
    outcome: dict[int, str] = {}

    def add(uid: int) -> None:
        try:
            manager.add(hand_made(uid, "same"))
            outcome[uid] = "accepted"
        except EngineDeadError:
            outcome[uid] = "refused"

    def paused_put(command: Any) -> None:
        put(command)
        if command.request.uid == 1:
            a_told.set()
            assert b_entered.wait(PATIENCE)
        else:
            b_entered.set()
            assert a_done.wait(PATIENCE)

    manager._put = paused_put  # type: ignore[method-assign]
    a = threading.Thread(target=lambda: (add(1), a_done.set()))
    a.start()
    assert a_told.wait(PATIENCE)
    driver.history.take(manager.close(FinishReason.ABORT))
    manager.door.closed = None  # B had looked before
    add(2)
    a.join(PATIENCE)
    assert outcome == {1: "accepted", 2: "refused"}
    assert list(driver.history.ends) == [1]
    assert manager.door.num_inside == 0


@pytest.mark.usefixtures("eager_switching")
def test_of_requests_that_race_with_the_closing_each_is_refused_or_ends_once(name: str) -> None:
    num_threads = 4
    for turn in range(0, 50, 2):
        manager, history = make(name), History()
        accepted: list[list[int]] = [[] for _ in range(num_threads)]
        refused: list[int] = []

        def call(who: int, manager: Manager = manager, accepted: Any = accepted, refused: Any = refused) -> None:
            for number in itertools.count():  # until the door is closed
                try:
                    request = make_request(manager, f"r{number}-{who // 2}", [1, 2, 3], SamplingParams())
                    manager.add(request)
                except (DuplicateRequestError, QueueFullError):  # two threads use the same ids
                    continue
                except EngineDeadError:
                    refused.append(who)
                    return
                accepted[who].append(request.uid)
                if number % 2:
                    with suppress(EngineDeadError):
                        manager.abort([request.uid])

        threads = [threading.Thread(target=call, args=(who,), daemon=True) for who in range(num_threads)]
        for thread in threads:
            thread.start()
        while sum(map(len, accepted)) < turn:
            manager.drain()
            history.take(manager.take_effects())
        history.take(manager.close(FinishReason.ABORT))
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(refused) == list(range(num_threads))
        assert set(history.ends) == {uid for uids in accepted for uid in uids}
        assert manager.door.num_inside == 0
        assert not manager.take_effects()


# -- nothing after the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["aborted", "device lost"])
def test_nothing_is_heard_of_a_request_after_its_end(driver: Driver, how: str) -> None:
    uid = driver.add("a", max_tokens=3)
    batch = driver.launch()
    assert batch is not None
    if how == "aborted":
        driver.manager.abort(["a"])
        driver.settle()
        driver.manager.drain()
        effects = driver.manager.update(driver.result(batch))
    else:
        driver.manager.post_result(DeviceLost("gone"))
        driver.settle()
        driver.add("b")
        batch = driver.launch()
        assert batch is not None
        effects = driver.manager.update(driver.result(batch))
    assert uid in driver.history.ends
    assert uid not in [started for started, _ in effects.started]
