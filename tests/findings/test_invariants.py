"""What everything above rests on. The mutants of `tests/mutants` that break one of these name its test."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headway.config import Role
from headway.errors import DuplicateRequestError, EngineDeadError
from headway.kvcache import OwnershipError
from headway.managers import Mailbox
from headway.managers.query import QueryDesk
from headway.request import FinishReason, RequestStatus
from headway.sampling import SamplingParams
from headway.scheduler import AbortRequests, Pause, ResetPrefixCache, Resume, StepResult
from tests.engine.running import Clock, Device, Hang
from tests.findings.original import make, running
from tests.findings.witness import SOON, Asked, comes
from tests.managers.driving import Driver as ManagerDriver
from tests.managers.driving import answer_to, every_manager, make_request, prompt_of
from tests.scheduler.driver import Driver, config

# -- the mailbox -------------------------------------------------------------------------------------------------


class Slept(AssertionError):
    """The writer sleeps although there is something to do."""


class Bell(queue.SimpleQueue[None]):
    """Objects where it would be slept upon for ever."""

    def get(self, block: bool = True, timeout: float | None = None) -> None:
        try:
            super().get(block=False)
        except queue.Empty:
            raise Slept from None


def hand_in(mailbox: Mailbox, lane: str) -> None:
    if lane == "commands":
        mailbox.put(AbortRequests((1,)))
    else:
        mailbox.put_result(StepResult(1, np.zeros(0, np.int32)))


@pytest.mark.parametrize("lane", ["commands", "results"])
def test_wake_up_of_a_writer_that_was_awake_when_it_was_handed_in(lane: str) -> None:
    """The bell was not rung: it has to look before it sleeps."""
    mailbox = Mailbox()
    mailbox._bell = Bell()
    hand_in(mailbox, lane)
    mailbox.wait(SOON)


@pytest.mark.parametrize("lane", ["commands", "results"])
def test_wake_up_of_a_writer_that_has_just_looked(lane: str) -> None:
    """It is handed in right behind the last look: by then the writer has announced that it will sleep."""
    mailbox = Mailbox()

    class Looked(deque[Any]):
        def __len__(self) -> int:
            found = super().__len__()
            if not handed_in:
                handed_in.append(True)
                hand_in(mailbox, lane)
            return found

    handed_in: list[bool] = []
    mailbox._bell = Bell()
    mailbox._commands = Looked()  # the lane that is looked at last
    mailbox.wait(SOON)
    assert handed_in


@pytest.mark.parametrize("lane", ["commands", "results"])
def test_wake_up_by_a_producer_that_looks_for_sleepers_when_its_message_is_there(lane: str) -> None:
    """A producer that asked before appending could find the writer awake, and it would then sleep on the message."""

    class Watched(Mailbox):
        seen: list[int] = []  # noqa: RUF012

        @property
        def _sleeping(self) -> bool:
            self.seen.append(len(self))
            return False

        @_sleeping.setter
        def _sleeping(self, value: bool) -> None:
            pass

    mailbox = Watched()
    hand_in(mailbox, lane)
    assert mailbox.seen == [1]


def test_order_of_commands_is_that_of_their_coming(name: str) -> None:
    """An abort cannot overtake its own add, nor a clear what came before it."""
    driver = ManagerDriver(make(name))
    aborted = driver.add("a")
    driver.manager.add_abort_req_ids(["a"])
    cleared = driver.add("b")
    driver.manager.clear_data()
    kept = driver.add("c")
    driver.settle()
    assert list(driver.history.ends) == [aborted, cleared]
    driver.run()
    assert driver.history.reasons([aborted, cleared, kept]) == [
        FinishReason.ABORT,
        FinishReason.ABORT,
        FinishReason.LENGTH,
    ]
    assert driver.history.tokens == {kept: answer_to([1, 2, 3], 4)}


def test_order_of_results_is_before_commands() -> None:
    mailbox = Mailbox()
    mailbox.put(AbortRequests((1,)))
    mailbox.put(AbortRequests((2,)))
    taking = mailbox.take(10)
    assert isinstance(next(taking), AbortRequests)
    hand_in(mailbox, "results")
    assert [type(message).__name__ for message in taking] == ["StepResult", "AbortRequests"]


# -- queries: a permit to run, one outcome -----------------------------------------------------------------------


def test_permit_to_run_is_taken_once() -> None:
    _, cell = QueryDesk().open()
    assert cell.claim()
    assert not cell.claim()


def test_permit_of_a_query_whose_caller_has_left_is_gone() -> None:
    desk = QueryDesk()
    reply, cell = desk.open()
    found = desk.take(reply)
    assert isinstance(Asked(lambda: cell.wait(0.001)).outcome(), TimeoutError)
    assert found is not None and not found.claim(), "it timed out, and so it never runs"


@pytest.mark.parametrize("moment", ["before it is taken", "after it is taken"])
def test_permit_decides_what_a_timeout_leaves_behind(moment: str) -> None:
    """Time is up in the very moment in which the writer comes to the query: it holds nothing, or is answered."""
    manager = make("v2", role=Role.DECODE)
    request = make_request(manager, "a", [1, 2, 3], SamplingParams())
    take = manager._desk.take
    at = moment == "before it is taken"

    def time_is_up(reply: int) -> Any:
        cell = take(reply)
        if cell is not None and at:
            cell.fail(TimeoutError("just now"))
        return cell

    manager._desk.take = time_is_up  # type: ignore[method-assign]
    outcome = Asked(lambda: manager.preallocate_resource_in_d(request, timeout=SOON)).outcome(manager.drain)
    assert isinstance(outcome, TimeoutError) == at
    assert manager.snapshot().num_reserved == manager.door.num_inside == (0 if at else 1)


@pytest.mark.parametrize("claimed", [False, True], ids=["open", "claimed"])
def test_outcome_of_every_cell_at_the_close_is_a_failure(claimed: bool) -> None:
    desk = QueryDesk()
    _, cell = desk.open()
    if claimed:
        assert cell.claim()
    desk.close("shut down")
    assert isinstance(Asked(lambda: cell.wait(0.01)).outcome(), EngineDeadError)


def test_outcome_is_told_once() -> None:
    _, cell = QueryDesk().open()
    assert cell.answer("first")
    assert not cell.answer("second")
    assert not cell.fail(ValueError("third"))
    assert cell.wait(SOON) == "first"


def test_wait_for_steps_ends_when_they_are_answered_and_not_before(name: str) -> None:
    driver = ManagerDriver(make(name))
    driver.add("a")
    batch = driver.launch()
    assert batch is not None
    asked = Asked(lambda: driver.manager.wait_worker_inflight_requests_finish(SOON))
    assert comes(lambda: len(driver.manager._desk))
    for _ in range(5):
        driver.settle()
    assert asked.is_waiting()
    driver.manager.post_result(driver.result(batch))
    assert asked.outcome(driver.settle) is None


# -- the door ----------------------------------------------------------------------------------------------------


def test_door_lets_one_of_two_with_the_same_id_in(name: str) -> None:
    driver = ManagerDriver(make(name))
    driver.add("a")
    with pytest.raises(DuplicateRequestError):
        driver.add("a")
    driver.run()
    assert len(driver.history.ends) == 1
    driver.add("a")
    driver.run()
    driver.assert_empty()


def test_door_counts_a_request_out_once() -> None:
    """The thread that counts it out reports its end: no other thread does."""
    manager = make("v2")
    request = make_request(manager, "a", [1], SamplingParams())
    manager.add_request(request)
    assert manager.door.leave(request.uid)
    assert not manager.door.leave(request.uid)
    assert manager.door.num_inside == 0


def test_door_that_closes_behind_a_request_refuses_or_ends_it(name: str) -> None:
    """It had passed the door when the engine closed, and came too late to be ended with the others."""
    driver = ManagerDriver(make(name))
    manager, enter = driver.manager, driver.manager.door.enter

    def closed_meanwhile(request: Any, **options: Any) -> None:
        enter(request, **options)
        manager.door.leave(request.uid)
        driver.history.take(manager.close(FinishReason.ABORT))
        closed, manager.door.closed = manager.door.closed, None
        enter(request, **options)
        manager.door.closed = closed

    manager.door.enter = closed_meanwhile  # type: ignore[method-assign]
    with pytest.raises(EngineDeadError):
        driver.add("a")
    assert manager.door.num_inside == 0
    assert not driver.history.ends


def test_door_reports_the_end_of_a_reservation_too() -> None:
    """A yes is an accepted request: it ends once, also when the engine closes over it."""
    manager = make("v2", role=Role.DECODE)
    request = make_request(manager, "a", [1, 2, 3], SamplingParams())
    asked = Asked(lambda: manager.preallocate_resource_in_d(request, timeout=SOON))
    assert asked.outcome(manager.drain) is not None
    assert [end.uid for end in manager.close(FinishReason.ABORT).ended] == [request.uid]


# -- slots and blocks have one owner -----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
def test_late_results_of_the_former_owner_of_a_slot_are_dropped(depth: int) -> None:
    """Chunks and decodes, whatever the order in which slots are given away."""
    driver = Driver(config(max_num_seqs=2, max_num_batched_tokens=8), depth=2)
    old = [driver.add(range(10 * i, 10 * i + 11), max_tokens=9) for i in range(2)]
    for _ in range(depth):
        driver.launch()
    driver.abort(*(request.uid for request in old))
    new = [driver.add(range(10 * i, 10 * i + 11), max_tokens=9) for i in range(3, 5)]
    driver.launch()
    driver.run()
    driver.assert_answered(*new)
    driver.assert_empty()


def test_late_decodes_are_dropped_when_the_slot_has_changed_hands() -> None:
    driver = Driver(config(max_num_seqs=1), depth=2)
    old = driver.add(range(6), max_tokens=12)
    driver.step()
    driver.launch()  # a decode of the old one is on the device
    driver.abort(old.uid)
    new = driver.add(range(20, 26), max_tokens=5)
    driver.launch()
    seen = len(driver.history.tokens[old.uid])
    driver.answer()
    assert len(driver.history.tokens[old.uid]) == seen
    driver.run()
    driver.assert_answered(new)
    driver.assert_empty()


def test_published_is_only_what_a_step_that_succeeded_has_computed() -> None:
    driver = Driver(config(), depth=2)
    first = driver.add(range(12), max_tokens=2)
    driver.launch()
    second = driver.add(range(12), max_tokens=2)  # while the step of the first is out
    driver.launch()
    driver.answer(error="boom")
    assert not len(driver.state.prefix)
    third = driver.add(range(12), max_tokens=2)
    driver.run()
    assert driver.ended(first) == "error: boom"
    driver.assert_answered(second, third)
    driver.assert_empty()


def test_published_blocks_are_forgotten_with_the_device_that_held_them() -> None:
    driver = Driver(config())
    driver.add(range(12), max_tokens=2)
    driver.run()
    driver.lose_device()
    again = driver.add(range(12), max_tokens=2)
    driver.run()
    assert driver.history.started[again.uid] == 0
    driver.assert_answered(again)


def test_published_blocks_of_another_tenant_are_not_found() -> None:
    driver = Driver(config())
    for salt, cached in (("one", 0), ("two", 0), (None, 0), ("one", 8)):
        request = driver.add(range(12), max_tokens=2, cache_salt=salt)
        driver.run()
        assert driver.history.started[request.uid] == cached
    driver.assert_answered()


def test_published_is_nothing_that_was_begun_before_the_cache_was_reset() -> None:
    """Its first part may be of other weights; so no request may find what continues it."""
    driver = Driver(config(max_num_batched_tokens=8))
    driver.add(range(20), max_tokens=2)
    driver.step()
    assert driver.ask(ResetPrefixCache) == 2
    driver.run()
    again = driver.add(range(20), max_tokens=2)
    driver.run()
    assert driver.history.started[again.uid] == 0


def test_lent_blocks_stay_with_the_sender_until_it_is_done() -> None:
    """Also when their request has ended: else the next one's KV would be written where it reads."""
    driver = Driver(config(role=Role.PREFILL, num_blocks=9))
    request = driver.make(range(20), max_tokens=1)
    driver.reserve(request)
    driver.start_prefill(request.uid)
    driver.run()
    sending = driver.history.sent[request.uid]
    assert sending is not None
    driver.abort(request.uid)
    snapshot = driver.core.snapshot()
    assert (snapshot.num_blocks_free, snapshot.num_blocks_evictable) == (3, 0)
    waits = driver.add(range(30, 50), max_tokens=1)  # 5 blocks, of 3
    assert driver.launch() is None
    assert not driver.sent(request.uid)  # which looks whether they are as they were
    driver.run()
    driver.assert_answered(waits)
    driver.assert_empty()


def test_blocks_are_given_back_once() -> None:
    """Preempted, computed again, and ended: each time what it held then, and never twice."""
    driver = Driver(config(num_blocks=9, reserve="none"))
    for i in range(3):
        driver.add(range(10 * i, 10 * i + 8), max_tokens=16)
    driver.run()
    assert driver.core.snapshot().num_preemptions > 0
    driver.assert_answered()
    driver.assert_empty()


def test_audit_after_every_step_stops_at_a_block_that_is_lost() -> None:
    driver = Driver(config())
    driver.add(range(6), max_tokens=12)
    driver.step()
    driver.state.pool.take(1)  # it has no owner
    batch = driver.core.schedule()
    assert batch is not None
    with pytest.raises(OwnershipError, match="block ownership is broken"):
        driver.core.apply(driver.device.run(batch))


def test_first_in_line_is_never_the_victim() -> None:
    """So one request always gets to the end, and no two go on evicting each other."""
    driver = Driver(config(num_blocks=9, reserve="none"))
    first, *others = [driver.add(range(10 * i, 10 * i + 8), max_tokens=16) for i in range(3)]
    preempted = set()
    while driver.core.snapshot().has_work:
        driver.step()
        for request in (first, *others):
            progress = driver.progress(request)
            if progress is not None and progress.status is RequestStatus.PREEMPTED:
                preempted.add(request.uid)
                assert driver.ended(first) is not None or request is not first
    assert preempted
    driver.assert_answered()


# -- pause, and a device that does not answer --------------------------------------------------------------------


@pytest.mark.parametrize("abort", [False, True], ids=["preempt", "abort"])
def test_pause_schedules_nothing_until_resume(abort: bool) -> None:
    driver = Driver(config())
    request = driver.add(range(9), max_tokens=5)
    driver.step()
    driver.tell(Pause(abort=abort, reset_prefix_cache=False))
    driver.add(range(20, 29), max_tokens=5)
    assert driver.launch() is None
    driver.tell(Resume())
    driver.run()
    assert driver.ended(request) == ("abort: the engine was paused" if abort else "length")


def test_pause_returns_when_nothing_is_in_flight_and_the_loop_lives_on(name: str) -> None:
    """The original stopped the loop that had to carry out the aborts."""
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        uid = it.add("a", max_tokens=20)
        assert hang.reached.wait(SOON)
        asked = Asked(lambda: it.manager.pause(timeout=SOON))
        it.history.wait_for([uid])
        assert asked.is_waiting(), "its step is still on the device"
        hang.let_go.set()
        assert asked.outcome() is None
        assert it.manager.snapshot().num_in_flight == 0
        it.manager.resume()
        it.history.wait_for([it.add("b")])


def test_watchdog_gives_up_a_step_that_never_answers(name: str, clock: Clock) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang), max_num_seqs=1, step_timeout=0.9) as it:
        first, second = it.add("a"), it.add("b")
        assert hang.reached.wait(SOON)
        clock.let_pass(1.0)  # a jump by more would be a process that was stopped
        it.history.wait_for([first])
        assert "did not answer within step_timeout" in str(it.history.ends[first].error)
        it.history.wait_for([second])
        assert it.history.tokens[second] == answer_to([1, 2, 3], 4)
        hang.let_go.set()


@every_manager
def test_end_of_every_request_is_told_once(name: str) -> None:
    """Aborted, finished, and come to its length at once; and the engine is shut down meanwhile."""
    with running(name, Device(base_s=0.001)) as it:
        uids = [it.add(f"r{i}", prompt_of(i, 5), max_tokens=1 + i % 5) for i in range(40)]
        enders: tuple[Callable[[list[int]], None], ...] = (it.manager.add_abort_req_ids, it.manager.finish_requests)
        threads = [threading.Thread(target=end, args=(uids[::3],)) for end in enders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        it.engine.shutdown()
        assert set(it.history.ends) == set(uids)
        assert it.engine.failure() is None, "the history objected"
