"""Pause and resume, clearing, preparation: what an operator does, and what it does to those inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headway.config import PauseMode, Role
from headway.errors import EnginePausedError
from headway.managers import LockFreeManager
from headway.managers import manager as manager_module
from headway.request import FinishReason, RequestStatus
from headway.sampling import SamplingParams
from headway.scheduler import PreprocessDone
from tests.managers.driving import PATIENCE, Driver, answer_to, every_manager, make, make_request, prompt_of

MODES: tuple[PauseMode, ...] = ("abort", "preempt")
STEP_ON_DEVICE = pytest.mark.parametrize("in_flight", [False, True], ids=["idle device", "step on the device"])


# -- refusing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_pause_refuses_at_once_and_not_when_the_loop_gets_to_it(driver: Driver, mode: PauseMode) -> None:
    driver.add("before", max_tokens=9)
    batch = driver.launch()
    assert batch is not None
    pausing = driver.asking(lambda: driver.manager.pause(mode))
    with pytest.raises(EnginePausedError, match="paused; try again when it has been resumed"):
        driver.add("after")
    assert driver.manager.door.num_inside == (
        1 if mode == "preempt" or isinstance(driver.manager, LockFreeManager) else 0
    )
    driver.settle()
    assert not pausing.done(), "a step is on the device"
    driver.complete(batch)
    assert pausing.answer() is None
    assert driver.manager.snapshot().paused


def test_an_unknown_mode_pauses_nothing(driver: Driver) -> None:
    with pytest.raises(ValueError, match="mode must be one of abort, preempt, got 'gently'"):
        driver.manager.pause("gently")  # type: ignore[arg-type]
    assert not driver.manager.door.paused
    driver.add("a")
    driver.run()


def test_what_is_malformed_is_said_to_be_so_also_while_paused(driver: Driver) -> None:
    driver.ask(driver.manager.pause)
    with pytest.raises(EnginePausedError):
        driver.add("a")
    driver.manager.resume()
    driver.add("a")
    driver.run()


# -- those inside ------------------------------------------------------------------------------------------------


@STEP_ON_DEVICE
def test_aborting_ends_all_requests_accepted_before(name: str, in_flight: bool) -> None:
    """Those that run, those that wait, and those that the loop has not heard of."""
    driver = Driver(make(name, max_num_seqs=2))
    uids = [driver.add(f"r{i}", prompt_of(i, 9), max_tokens=9) for i in range(4)]
    driver.step()
    batch = driver.launch() if in_flight else None
    uids.append(driver.add("not applied yet"))
    pausing = driver.asking(driver.manager.pause)
    driver.settle()
    assert driver.history.reasons(uids) == [FinishReason.ABORT] * 5
    assert {end.error for end in driver.history.ends.values()} == {"the engine was paused"}
    if batch is not None:
        assert not pausing.done()
        driver.complete(batch)
    pausing.answer()
    driver.manager.resume()
    driver.settle()
    driver.assert_empty()


@every_manager
@STEP_ON_DEVICE
def test_preempting_keeps_all_requests_accepted_before_and_their_answers(name: str, in_flight: bool) -> None:
    driver = Driver(make(name, max_num_seqs=2))
    uids = [driver.add(f"r{i}", prompt_of(i, 9), max_tokens=9) for i in range(4)]
    driver.step()
    batch = driver.launch() if in_flight else None
    uids.append(driver.add("r4", prompt_of(4, 9), max_tokens=9))
    pausing = driver.asking(lambda: driver.manager.pause("preempt"))
    driver.settle()
    if batch is not None:
        assert not pausing.done()
        driver.complete(batch)
    pausing.answer()
    snapshot = driver.manager.snapshot()
    assert (snapshot.num_running, snapshot.num_waiting, snapshot.num_in_flight) == (0, 5, 0)
    assert driver.manager.door.num_inside == 5
    for next_pass in (driver.manager.schedule, driver.manager.prefill_schedule):
        assert next_pass() is None, "nothing is computed while it is paused"
    driver.manager.resume()
    driver.run()
    assert [driver.history.tokens[uid] for uid in uids] == [answer_to(prompt_of(i, 9), 9) for i in range(5)]
    driver.assert_empty()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resets", [True, False])
def test_the_cache_is_forgotten_before_the_pause_returns_if_it_is_to_be(
    driver: Driver, mode: PauseMode, resets: bool
) -> None:
    driver.add("a", prompt_of(1, 9), max_tokens=5)
    driver.step()
    batch = driver.launch()
    assert batch is not None
    pausing = driver.asking(lambda: driver.manager.pause(mode, reset_prefix_cache=resets))
    driver.settle()
    driver.complete(batch)
    pausing.answer()
    assert (driver.manager.snapshot().num_blocks_evictable == 0) is resets
    driver.manager.abort("a")  # else it computes again, and shares what it computes
    driver.settle()
    driver.manager.resume()
    again = driver.add("b", prompt_of(1, 9))
    driver.run()
    assert driver.history.started[again] == (0 if resets else 8)


def test_an_abort_is_carried_out_while_the_engine_is_paused(driver: Driver) -> None:
    kept, unwanted = driver.add("kept"), driver.add("unwanted")
    driver.step()
    driver.ask(lambda: driver.manager.pause("preempt"))
    driver.manager.abort("unwanted")
    driver.settle()
    assert list(driver.history.ends) == [unwanted]
    driver.manager.resume()
    driver.run()
    assert driver.history.tokens[kept] == answer_to([1, 2, 3], 4)


def test_a_deadline_passes_also_while_the_engine_is_paused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(manager_module.time, "monotonic", lambda: now[0])
    driver = Driver(make(name))
    request = make_request(driver.manager, "a", [], SamplingParams(), preprocess=b"an image")
    driver.manager.add(request)
    driver.settle()
    driver.asking(lambda: driver.manager.pause("preempt"))
    driver.settle()
    now[0] = driver.manager.config.preprocess_timeout
    driver.settle()
    assert driver.history.ends[request.uid].error == "its preparation took longer than preprocess_timeout"
    driver.assert_empty()


# -- a pause that takes too long ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_pause_that_the_device_holds_up_says_so_and_stays(driver: Driver, mode: PauseMode) -> None:
    uid = driver.add("a", max_tokens=9)
    batch = driver.launch()
    assert batch is not None
    says = r"the device was not idle within 0\.001 s; the engine is paused all the same"
    with pytest.raises(TimeoutError, match=says):
        driver.ask(lambda: driver.manager.pause(mode, timeout=0.001))
    driver.settle()
    assert driver.manager.snapshot().paused
    with pytest.raises(EnginePausedError):
        driver.add("b")
    driver.complete(batch)
    assert driver.launch() is None
    assert driver.ask(lambda: driver.manager.await_steps(PATIENCE)) is None
    driver.manager.resume()
    driver.run()
    assert driver.history.reasons([uid]) == [FinishReason.ABORT if mode == "abort" else FinishReason.LENGTH]
    driver.assert_empty()


def test_a_pause_that_the_loop_has_not_got_to_holds_all_the_same(driver: Driver) -> None:
    """Under the mailbox its message is still there, and no request comes in before it is applied, or after."""
    driver.add("a")
    pausing = driver.asking(lambda: driver.manager.pause(timeout=0.001))
    if type(driver.manager).__name__ == "LockFreeManager":
        with pytest.raises(TimeoutError, match="paused all the same"):
            pausing.answer()
    with pytest.raises(EnginePausedError):
        driver.add("b")
    driver.settle()
    assert driver.manager.snapshot().paused
    with pytest.raises(EnginePausedError):
        driver.add("b")
    driver.manager.resume()
    driver.settle()
    driver.assert_empty()


# -- pause and resume, again and again ---------------------------------------------------------------------------


def test_resuming_takes_requests_at_once_and_not_when_the_loop_gets_to_it(driver: Driver) -> None:
    driver.ask(driver.manager.pause)
    driver.manager.resume()
    uid = driver.add("a")
    driver.run()
    assert driver.history.tokens[uid] == answer_to([1, 2, 3], 4)


def test_either_may_be_told_twice(driver: Driver) -> None:
    driver.manager.resume()
    uid = driver.add("a")
    for _ in range(2):
        driver.ask(lambda: driver.manager.pause("preempt"))
    for _ in range(2):
        driver.manager.resume()
    driver.run()
    assert driver.history.tokens[uid] == answer_to([1, 2, 3], 4)
    driver.assert_empty()


def test_the_last_of_pause_and_resume_holds_for_door_and_core_alike(driver: Driver) -> None:
    """Told one behind the other, and applied later."""
    for last in ("pause", "resume"):
        first = driver.asking(lambda: driver.manager.pause(timeout=PATIENCE))
        driver.manager.resume()
        if last == "pause":
            second = driver.asking(lambda: driver.manager.pause(timeout=PATIENCE))
        driver.settle()
        first.answer()
        assert driver.manager.door.paused == driver.manager.snapshot().paused == (last == "pause")
    assert second.answer() is None


# -- counts ------------------------------------------------------------------------------------------------------


def test_counts_that_others_act_on_include_what_is_not_applied_yet(driver: Driver) -> None:
    manager = driver.manager
    for i in range(3):
        driver.add(f"r{i}")
        assert manager.num_free_slots() == 3 - i
        assert manager.info()["num_inside"] == i + 1
    driver.ask(lambda: manager.pause("preempt"))
    assert manager.num_free_slots() == 1, "what is kept will want its slots again"
    manager.resume()
    manager.clear()
    driver.settle()
    assert manager.num_free_slots() == 4


def test_info_is_the_snapshot_by_name_and_who_is_inside(driver: Driver) -> None:
    driver.add("a", prompt_of(1, 9), max_tokens=9)
    driver.step()
    driver.add("b")
    info, snapshot = driver.manager.info(), driver.manager.snapshot()
    assert info == {**snapshot._asdict(), "num_inside": 2}
    assert (info["num_running"], info["paused"], info["step_id"]) == (1, False, 1)
    assert all(isinstance(value, int | float | bool | None) for value in info.values())
    info["num_running"] = 99
    assert driver.manager.info()["num_running"] == 1


def test_slots_spanned_are_the_highest_slot_in_use_and_one(driver: Driver) -> None:
    assert driver.manager.snapshot().num_slots_spanned == 0
    for i in range(3):
        driver.add(f"r{i}", max_tokens=9)
    driver.step()
    assert driver.manager.snapshot().num_slots_spanned == 3
    driver.manager.abort("r0")
    driver.settle()
    assert driver.manager.snapshot().num_slots_spanned == 3, "a worker still has to look at rows 0 to 2"
    driver.manager.abort("r2")
    driver.settle()
    assert driver.manager.snapshot().num_slots_spanned == 2
    driver.run()
    assert driver.manager.snapshot().num_slots_spanned == 0


# -- preparation -------------------------------------------------------------------------------------------------


def preparing(name: str, **changes: Any) -> tuple[Driver, int]:
    driver = Driver(make(name, **changes))
    request = make_request(driver.manager, "image", [], SamplingParams(max_tokens=4), preprocess=b"an image")
    driver.manager.add(request)
    driver.manager.drain()
    effects = driver.manager.take_effects()
    assert effects.jobs == [request]
    assert driver.manager.num_free_slots() == driver.manager.config.max_num_seqs - 1
    return driver, request.uid


def test_a_request_that_is_prepared_keeps_its_place_in_the_queue(name: str) -> None:
    driver, uid = preparing(name, max_num_seqs=1)
    later = [driver.add(f"later{i}", max_tokens=9) for i in range(2)]
    driver.step()
    prompt = prompt_of(1, 9)
    driver.manager.post_result(PreprocessDone(uid, np.array(prompt, np.int32)))
    driver.run()
    assert driver.history.tokens[uid] == answer_to(prompt, 4)
    assert list(driver.history.ends) == [later[0], uid, later[1]]
    driver.assert_empty()


@pytest.mark.parametrize("how", ["abort", "finish", "clear", "pause", "fail"])
def test_a_request_ends_while_it_is_being_prepared_and_a_late_result_is_dropped(name: str, how: str) -> None:
    driver, uid = preparing(name)
    entry = driver.manager._core._state.entries[uid]
    assert entry.status is RequestStatus.PREPARING
    match how:
        case "abort":
            driver.manager.abort("image")
        case "finish":
            driver.manager.finish("image")
        case "clear":
            driver.manager.clear()
        case "pause":
            driver.ask(driver.manager.pause)
            driver.manager.resume()
        case "fail":
            driver.manager.post_result(PreprocessDone(uid, error="no such image"))
    driver.settle()
    assert list(driver.history.ends) == [uid]
    if how == "fail":
        assert driver.history.ends[uid].error == "its preparation failed: no such image"
    driver.manager.post_result(PreprocessDone(uid))
    driver.settle()
    driver.assert_empty()


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_a_reservation_does_not_outlive_a_reset_of_the_cache_in_a_pause(name: str, role: Role) -> None:
    """What it found in the cache would be stale."""
    driver = Driver(make(name, role=role))
    manager = driver.manager
    request = make_request(manager, "a", prompt_of(1, 9), SamplingParams())
    ask = manager.reserve_prefill if role is Role.PREFILL else manager.reserve_decode
    assert driver.ask(lambda: ask(request))
    driver.ask(lambda: manager.pause("preempt", reset_prefix_cache=False))
    driver.settle()
    assert not driver.history.ends
    driver.ask(lambda: manager.pause("preempt"))
    driver.settle()
    assert driver.history.ends[request.uid].error == "the engine was paused and its cache reset"
    manager.resume()
    driver.settle()
    driver.assert_empty()
