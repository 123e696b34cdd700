"""The lock-free manager: no caller waits for the writer, the writer's turns are bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headway.managers import Manager, lock_free
from headway.sampling import SamplingParams
from headway.scheduler import Scheduler, StepResult
from tests.managers.driving import ALL, PATIENCE, Driver, make, make_request

SECONDS_PER_TURN = lock_free.MAX_SECONDS_PER_TURN  # before a fixture lifts it

# -- callers never wait ------------------------------------------------------------------------------------------


class Held:
    """A manager whose core is held up inside a pass, on another thread."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.manager = make(name)
        self._inside, self._go_on = threading.Event(), threading.Event()
        schedule = Scheduler.schedule

        def held_up(core: Scheduler) -> Any:
            self._inside.set()
            assert self._go_on.wait(PATIENCE)
            return schedule(core)

        monkeypatch.setattr(Scheduler, "schedule", held_up)
        self._writer = threading.Thread(target=self.manager.schedule)
        self._writer.start()
        assert self._inside.wait(PATIENCE)

    def calls_return(self, calls: Callable[[Manager], None], within: float) -> bool:
        """Whether the calls come back while the core is held up."""
        caller = threading.Thread(target=calls, args=(self.manager,))
        caller.start()
        caller.join(within)
        returned = not caller.is_alive()
        self._go_on.set()
        self._writer.join(PATIENCE)
        caller.join(PATIENCE)
        assert not caller.is_alive()
        return returned


def everything_a_caller_may_do(manager: Manager) -> None:
    request = make_request(manager, "a", [1, 2, 3], SamplingParams())
    manager.add(request)
    manager.finish(["a"])
    manager.abort([request.uid])
    manager.num_free_slots()
    manager.snapshot()
    manager.post_result(StepResult(99, np.zeros(0, np.int32)))


def test_callers_do_not_wait_for_a_scheduling_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Held("v2", monkeypatch).calls_return(everything_a_caller_may_do, within=PATIENCE)


def test_under_the_lock_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way of access, which also shows that the test above can fail."""
    assert not Held("v1", monkeypatch).calls_return(everything_a_caller_may_do, within=0.2)


@pytest.mark.parametrize("name", ALL)
def test_reading_does_not_wait_under_any_manager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(manager: Manager) -> None:
        make_request(manager, "a", [1, 2, 3], SamplingParams())
        manager.num_free_slots()
        manager.snapshot()

    assert Held(name, monkeypatch).calls_return(read, within=PATIENCE)


def test_a_command_does_not_touch_the_core_until_the_writer_drains() -> None:
    driver = Driver(make("v2"))
    driver.add("a")
    driver.manager.abort(["a"])
    assert driver.manager.snapshot().num_requests_added == 0
    assert driver.manager._core.requests() == []
    assert not driver.manager.take_effects()
    driver.settle()
    assert driver.manager.snapshot().num_requests_added == driver.manager.snapshot().num_requests_ended == 1


def test_a_pass_takes_into_account_what_was_handed_in_before_it() -> None:
    for method in ("schedule", "prefill_schedule"):
        driver = Driver(make("v2"))
        driver.next_pass = getattr(driver.manager, method)
        driver.add("a")
        driver.launch()
        assert driver.manager.snapshot().num_requests_added == 1


# -- a turn is bounded -------------------------------------------------------------------------------------------


def test_a_flood_is_applied_a_bounded_share_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_free, "MAX_COMMANDS_PER_TURN", 3)
    driver = Driver(make("v2"))
    for i in range(8):
        driver.add(f"r{i}")
    added = []
    for _ in range(4):
        driver.manager.wait(1e9)  # returns at once while something is left
        driver.manager.drain()
        added.append(driver.manager.snapshot().num_requests_added)
        if added[-1] == 8:
            break
    assert added == [3, 6, 8]
    driver.run()
    driver.assert_empty()


def test_a_turn_is_bounded_in_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_free, "MAX_SECONDS_PER_TURN", -1.0)  # over before it begins: one message each
    driver = Driver(make("v2"))
    for i in range(3):
        driver.add(f"r{i}")
    for count in (1, 2, 3, 3):
        driver.manager.drain()
        assert driver.manager.snapshot().num_requests_added == count


def test_a_flood_of_commands_does_not_hold_up_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_free, "MAX_COMMANDS_PER_TURN", 1)
    driver = Driver(make("v2"))
    driver.add("a")
    batch = driver.launch()
    assert batch is not None
    for _ in range(100):
        driver.manager.abort(["unknown"])
    driver.manager.post_result(driver.result(batch))
    driver.manager.drain()
    assert driver.manager.snapshot().num_in_flight == 0


def test_the_bounds_are_small_beside_a_step() -> None:
    assert lock_free.MAX_COMMANDS_PER_TURN <= 4096
    assert SECONDS_PER_TURN <= 0.005


def test_a_caller_is_not_held_up_by_a_step_on_the_device() -> None:
    """Between `schedule` and the result, which may be long, commands go in and are applied."""
    driver = Driver(make("v2"))
    driver.add("a", max_tokens=3)
    batch = driver.launch()
    assert batch is not None
    driver.add("b")
    driver.manager.abort(["a"])
    driver.settle()
    assert [end.request_id for end in driver.history.ends.values()] == ["a"]
    driver.complete(batch)
    driver.run()
    driver.assert_empty()
