"""A slot that is released other than by a step's result waits until the device has done with its former request."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headway.config import Role
from headway.kvcache import OwnershipError
from headway.scheduler import Clear, Owner, PreemptAll, QuarantinedSlot, SlotAcknowledged, StepResult
from tests.scheduler.driver import Driver, config


def of(depth: int = 1, **changes: object) -> Driver:
    return Driver(config(quarantine_slots=True, **changes), depth=depth)


def running(depth: int = 1, num_requests: int = 2, **changes: object) -> Driver:
    """Two slots with a request each, and as many steps in flight as may be."""
    driver = of(depth, max_num_seqs=2, **changes)
    for i in range(num_requests):
        driver.add([i, i + 1], max_tokens=20)
    driver.step()
    while len(driver.in_flight) < depth and driver.launch() is not None:
        pass
    return driver


def acknowledge(driver: Driver, waiting: QuarantinedSlot) -> None:
    assert not driver.tell(SlotAcknowledged(waiting.slot, waiting.generation))


LEAVE: dict[str, Callable[[Driver], object]] = {
    "abort": lambda driver: driver.abort(1),
    "finish": lambda driver: driver.finish(1),
    "preemption": lambda driver: driver.tell(PreemptAll()),
    "clear": lambda driver: driver.tell(Clear()),
    "pause": lambda driver: driver.pause("abort"),
}


@pytest.mark.parametrize("leave", LEAVE)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_slot_that_was_given_up_waits_for_the_device(leave: str, depth: int) -> None:
    driver = running(depth, num_requests=1)
    LEAVE[leave](driver)
    (waiting,) = driver.core.take_quarantined()
    assert (waiting.slot, waiting.uid) == (0, 1) and not driver.core.take_quarantined()
    snapshot = driver.core.snapshot()
    assert snapshot.num_slots_quarantined == 1 and driver.core.slots.num_free_slots() == 1
    assert snapshot.num_blocks_free + snapshot.num_blocks_evictable == snapshot.num_blocks_total, "blocks do not wait"
    acknowledge(driver, waiting)
    assert driver.core.snapshot().num_slots_quarantined == 0 and driver.core.slots.num_free_slots() == 2


def test_a_slot_in_quarantine_is_given_to_no_request() -> None:
    driver = running()
    driver.abort(1)
    new = driver.add([7, 8], max_tokens=2)
    for _ in range(3):
        driver.step()
    assert new.uid not in driver.admissions()
    acknowledge(driver, driver.core.take_quarantined()[0])
    driver.run()
    driver.assert_answered(new)


def test_a_preempted_request_does_not_get_its_own_slot_back_before_the_device_has_let_go_of_it() -> None:
    driver = running()
    driver.tell(PreemptAll())
    assert driver.launch() is None and driver.core.snapshot().num_waiting == 2
    for waiting in driver.core.take_quarantined():
        acknowledge(driver, waiting)
    driver.run()
    driver.assert_answered()
    driver.assert_empty()


@pytest.mark.parametrize("end", ["limit", "stop token", "failed step"])
def test_a_slot_is_free_at_once_if_the_device_has_ended_its_request(end: str) -> None:
    driver = of()
    driver.add([1, 2], max_tokens=1 if end == "limit" else 9, stop_token_ids=range(50) if end == "stop token" else ())
    driver.launch()
    driver.answer("it broke" if end == "failed step" else None)
    driver.run()
    assert not driver.core.take_quarantined()
    driver.assert_empty()


def test_an_acknowledgement_of_an_earlier_request_ends_no_later_quarantine() -> None:
    driver = running(num_requests=1)
    driver.abort(1)
    (first,) = driver.core.take_quarantined()
    acknowledge(driver, first)
    driver.add([5, 6], max_tokens=20)
    driver.step()
    driver.step()
    acknowledge(driver, first)  # while the next request runs there
    driver.abort(2)
    (second,) = driver.core.take_quarantined()
    assert second.slot == first.slot and second.generation > first.generation
    acknowledge(driver, first)
    assert driver.core.snapshot().num_slots_quarantined == 1
    acknowledge(driver, second)
    acknowledge(driver, second)
    assert driver.core.snapshot().num_slots_quarantined == 0
    driver.assert_empty()


@pytest.mark.parametrize(("slot", "generation"), [(0, 0), (1, 0), (99, 0), (0, -1)])
def test_an_acknowledgement_for_nothing_changes_nothing(slot: int, generation: int) -> None:
    driver = running()
    before = driver.core.snapshot()
    assert not driver.tell(SlotAcknowledged(slot, generation)) and driver.core.snapshot() == before
    driver.run()
    driver.assert_answered()


def test_a_lost_device_ends_all_quarantines() -> None:
    driver = running()
    driver.abort(1)
    driver.lose_device()
    assert driver.core.snapshot().num_slots_quarantined == 0 and not driver.core.take_quarantined()
    driver.assert_empty()


def test_a_quarantine_that_is_over_is_not_told_any_more() -> None:
    driver = running()
    driver.abort(1)
    driver.tell(SlotAcknowledged(0, 0))
    assert not driver.core.take_quarantined()


def test_a_late_result_for_a_slot_in_quarantine_is_dropped() -> None:
    driver = running(depth=2)
    driver.abort(1)
    while driver.in_flight:
        assert 1 not in {uid for outputs in driver.answer().tokens for uid in outputs.uids.tolist()}


def test_a_request_of_higher_priority_displaces_one_request_and_waits_for_its_slot() -> None:
    driver = of(max_num_seqs=2)
    for i in range(2):
        driver.add([i, 1], max_tokens=20, priority=5)
    driver.step()
    urgent = driver.add([8, 9], max_tokens=2, priority=0)
    for _ in range(3):
        driver.step()
    (waiting,) = driver.core.take_quarantined()
    assert driver.core.snapshot().num_preemptions == 1 and urgent.uid not in driver.admissions()
    acknowledge(driver, waiting)
    driver.run()
    driver.assert_answered()
    assert driver.admissions()[2] == urgent.uid


@pytest.mark.parametrize("dropped", [True, False])
def test_a_reservation_that_ends_leaves_a_slot_that_waits(dropped: bool) -> None:
    driver = of(role=Role.PREFILL)
    request = driver.make([1, 2, 3], max_tokens=1)
    assert driver.reserve(request) is not None
    if dropped:
        driver.abort(request.uid)
    else:
        driver.wait(100.0)
    (waiting,) = driver.core.take_quarantined()
    assert waiting.uid == request.uid
    acknowledge(driver, waiting)
    driver.assert_empty()


def test_without_the_option_no_slot_waits() -> None:
    driver = Driver(config())
    driver.add([1, 2])
    driver.step()
    driver.abort(1)
    assert not driver.core.take_quarantined() and driver.core.slots.num_free_slots() == 4


def test_an_audit_names_the_slots_that_wait_and_for_how_long() -> None:
    driver = running()
    driver.now = 5.0
    driver.abort(1)
    driver.now = 8.0
    driver.tell(StepResult(99, driver.batches[0].slots))
    report = driver.core.audit_report()
    assert report.ok and report.num_slots_used == 2
    assert Owner("uid 1", "quarantine", 0, 0, 1, 3.0) in report.owners
    assert "quarantine of slot 0 after request 'uid 1'" in map(str, report.owners)


def test_an_audit_finds_a_slot_that_was_given_away_while_it_waits() -> None:
    driver = running(num_requests=1)
    driver.abort(1)
    driver.state.table.generation[0] += 1
    with pytest.raises(OwnershipError, match="slot 0 is in quarantine, and was given to a request"):
        driver.core.audit()


def test_a_span_of_slots_counts_those_that_wait() -> None:
    driver = running()
    driver.abort(2)
    assert driver.core.snapshot().num_slots_spanned == 2
    acknowledge(driver, driver.core.take_quarantined()[0])
    assert driver.core.snapshot().num_slots_spanned == 1
