"""What guests of an engine need of a manager: held admissions, and slots that wait for their device."""

from __future__ import annotations

import pytest

from headway.config import Role
from headway.sampling import SamplingParams
from headway.scheduler import Reservation
from tests.managers.driving import Driver, answer_to, every_manager, make, make_request, prompt_of


@pytest.fixture
def driver(name: str) -> Driver:
    return Driver(make(name, quarantine_slots=True))


@every_manager
def test_held_admissions_let_running_requests_end_and_keep_the_others_back(driver: Driver) -> None:
    manager = driver.manager
    first = driver.add("first")
    driver.step()
    manager.hold_admissions()
    second = driver.add("second")
    driver.run_out()
    assert list(driver.history.ends) == [first] and manager.snapshot().holds_admissions
    assert manager.snapshot().num_waiting == 1 and not manager.snapshot().has_work
    manager.lift_hold()
    driver.run_out()
    assert list(driver.history.ends) == [first, second] and not manager.snapshot().holds_admissions


@every_manager
def test_a_slot_that_waits_is_told_once_and_freed_by_its_acknowledgement(driver: Driver) -> None:
    manager = driver.manager
    uid = driver.add("a", max_tokens=50)
    driver.step()
    manager.abort("a")
    manager.drain()
    effects = manager.take_effects()
    driver.history.take(effects)
    (waiting,) = effects.quarantined
    assert (waiting.slot, waiting.uid) == (0, uid) and effects and not manager.take_effects().quarantined
    assert manager.snapshot().num_slots_quarantined == manager.info()["num_slots_quarantined"] == 1
    assert [(owner.kind, owner.uid) for owner in manager._core.audit_report().owners] == [("quarantine", uid)]
    manager.slot_acknowledged(waiting.slot, waiting.generation)
    manager.slot_acknowledged(waiting.slot, waiting.generation)
    manager.drain()
    assert manager.snapshot().num_slots_quarantined == 0


@every_manager
def test_preempted_requests_are_told_before_there_is_a_batch(driver: Driver) -> None:
    manager = driver.manager
    uid = driver.add("a", max_tokens=50)
    driver.step()
    manager.preempt_all()
    manager.drain()
    assert manager.take_preempted() == (uid,) and manager.take_preempted() == ()
    for waiting in manager.take_effects().quarantined:
        manager.slot_acknowledged(waiting.slot, waiting.generation)
    batch = driver.launch()
    assert batch is not None and batch.preempted == ()


@every_manager
def test_a_device_that_gives_one_token_each_is_right_with_drafts_too(name: str) -> None:
    driver = Driver(make(name, num_speculative_tokens=3))
    prompts = [prompt_of(i, 3 + i) for i in range(6)]
    uids = [driver.add(f"r{i}", prompt, max_tokens=20) for i, prompt in enumerate(prompts)]
    driver.run()
    assert [driver.history.tokens[uid] for uid in uids] == [answer_to(prompt, 20) for prompt in prompts]
    driver.assert_empty()


@every_manager
def test_no_reservation_is_given_while_admissions_are_held(name: str) -> None:
    manager = make(name, role=Role.PREFILL)
    manager.hold_admissions()
    driver = Driver(manager)
    driver.next_pass = manager.prefill_schedule
    request = make_request(manager, "a", [1, 2, 3], SamplingParams(max_tokens=1))
    assert driver.ask(lambda: manager.reserve_prefill(request)) is None
    manager.lift_hold()
    assert isinstance(driver.ask(lambda: manager.reserve_prefill(request)), Reservation)
