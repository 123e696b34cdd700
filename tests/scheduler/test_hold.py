"""Admissions can be held: requests with a slot go on, and no other request gets one until the hold is lifted."""

import pytest

from headway.config import Role
from headway.request import RequestStatus
from headway.scheduler import HoldAdmissions, LiftHold, PreemptAll, Resume
from tests.scheduler.driver import Driver, config


def held(depth: int = 1, **changes: object) -> Driver:
    """A request that decodes, a request that waits, and no admissions."""
    driver = Driver(config(**changes), depth=depth)
    driver.add([1, 2], max_tokens=12)
    driver.step()
    driver.add([3, 4, 5], max_tokens=6)
    assert not driver.tell(HoldAdmissions())
    return driver


@pytest.mark.parametrize("depth", [1, 2])
def test_requests_with_a_slot_end_and_the_others_wait_until_it_is_lifted(depth: int) -> None:
    driver = held(depth)
    driver.run()
    driver.assert_answered(driver.requests[1])
    snapshot = driver.core.snapshot()
    assert (snapshot.num_running, snapshot.num_waiting, snapshot.holds_admissions) == (0, 1, True)
    assert not snapshot.has_work and driver.launch() is None and not snapshot.paused
    assert not driver.tell(LiftHold())
    assert not driver.core.snapshot().holds_admissions and driver.core.snapshot().has_work
    driver.run()
    driver.assert_answered()
    driver.assert_empty()


def test_a_prompt_that_is_partly_computed_goes_on() -> None:
    driver = Driver(config(max_num_batched_tokens=8))
    request = driver.add(range(20), max_tokens=2)
    driver.step()
    driver.tell(HoldAdmissions())
    driver.run()
    driver.assert_answered(request)


def test_a_preempted_request_waits_too() -> None:
    driver = held()
    driver.tell(PreemptAll())
    assert driver.launch() is None and driver.core.snapshot().num_waiting == 2
    driver.tell(LiftHold())
    driver.run()
    driver.assert_answered()


def test_no_request_is_displaced_for_a_request_that_may_not_be_admitted() -> None:
    driver = Driver(config(max_num_seqs=1))
    driver.add([1, 2], max_tokens=9, priority=5)
    driver.step()
    driver.add([3, 4], max_tokens=9, priority=0)
    driver.tell(HoldAdmissions())
    driver.step()
    assert driver.core.snapshot().num_preemptions == 0
    driver.tell(LiftHold())
    driver.step()
    assert driver.core.snapshot().num_preemptions == 1


def test_a_prefill_engine_admits_no_request_until_it_is_lifted() -> None:
    driver = Driver(config(role=Role.PREFILL))
    driver.tell(HoldAdmissions())
    request = driver.add(range(9), max_tokens=1)
    assert driver.core.snapshot().num_waiting == 1
    driver.tell(LiftHold())
    assert driver.core.snapshot().num_waiting == 0
    driver.run()
    driver.assert_answered(request)


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_a_reservation_is_refused_and_one_that_was_made_before_is_started(role: Role) -> None:
    driver = Driver(config(role=role))
    before, late = driver.make(range(9), max_tokens=1), driver.make(range(5), max_tokens=1)
    assert driver.reserve(before) is not None
    driver.tell(HoldAdmissions())
    assert driver.reserve(late) is None
    if role is Role.PREFILL:
        driver.start_prefill(before.uid)
    else:
        driver.start_decode(before)
    driver.launch()
    progress = driver.progress(before)
    assert progress is None or progress.status is not RequestStatus.RESERVED
    driver.tell(LiftHold())
    assert driver.reserve(late) is not None


def test_pause_and_hold_do_not_touch_each_other() -> None:
    driver = held()
    driver.pause()
    driver.tell(LiftHold())
    assert driver.core.snapshot().paused and driver.launch() is None
    driver.tell(HoldAdmissions())
    driver.tell(Resume())
    assert driver.core.snapshot().holds_admissions and driver.launch() is None
    driver.tell(LiftHold())
    driver.run()
    driver.assert_answered()
