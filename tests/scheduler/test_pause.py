"""Pause and resume: nothing is scheduled in between, and nothing of before is found after new weights."""

import pytest

from headway.config import Role
from headway.request import Span
from headway.scheduler import (
    Resume,
)
from tests.scheduler.driver import Driver, busy, config


class TestPause:
    @pytest.mark.parametrize("mode", ["abort", "preempt"])
    def test_schedules_nothing_until_it_is_resumed(self, mode: str) -> None:
        driver = busy()
        driver.pause(mode)
        assert driver.launch() is None
        assert driver.core.snapshot().paused
        late = driver.add([7], max_tokens=3)
        assert driver.launch() is None
        driver.answer()
        assert driver.launch() is None and not driver.core.snapshot().has_work
        driver.tell(Resume())
        assert not driver.core.snapshot().paused
        driver.run()
        driver.assert_answered(late)
        driver.assert_empty()

    def test_by_abort_ends_all_that_run_and_all_that_wait_and_says_why(self) -> None:
        driver = busy()
        driver.add([8], preprocess=b"image")
        driver.pause("abort")
        assert {driver.ended(request) for request in driver.requests.values()} == {"abort: the engine was paused"}
        driver.answer()
        driver.assert_empty()

    @pytest.mark.parametrize("depth", [1, 2])
    def test_by_preemption_keeps_all_and_they_get_their_answers(self, depth: int) -> None:
        driver = busy(depth)
        driver.pause()
        snapshot = driver.core.snapshot()
        assert (snapshot.num_running, snapshot.num_waiting, snapshot.num_preemptions) == (0, 4, 3)
        assert snapshot.num_slots_spanned == 0
        driver.tell(Resume())
        driver.run()
        driver.assert_answered()
        driver.assert_empty()

    def test_lets_a_request_whose_last_step_is_launched_end(self) -> None:
        driver = Driver(config())
        request = driver.add([1, 2], max_tokens=1)
        driver.launch()
        driver.pause()
        assert driver.core.snapshot().num_waiting == 0
        driver.answer()
        driver.assert_answered(request)
        driver.assert_empty()

    @pytest.mark.parametrize("depth", [1, 2])
    def test_keeps_each_request_its_place_in_the_queue(self, depth: int) -> None:
        driver = busy(depth)
        driver.pause()
        driver.batches.clear()
        driver.tell(Resume())
        driver.run()
        assert driver.admissions() == [1, 2, 3, 4]

    def test_loses_what_is_in_flight_and_no_more(self) -> None:
        """The step's tokens are computed again: they may have come from weights that are about to change."""
        driver = Driver(config(), depth=2)
        request = driver.add([1, 2], max_tokens=12)
        driver.step()
        driver.launch()
        known = list(driver.history.tokens[request.uid])
        driver.pause()
        while driver.in_flight:
            driver.answer()
        assert driver.history.tokens[request.uid] == known
        driver.tell(Resume())
        batch = driver.launch()
        assert batch is not None and batch.admissions[0].tokens.tolist() == [1, 2, *known]

    def test_told_again_changes_nothing_and_a_stricter_one_counts(self) -> None:
        driver = busy()
        driver.pause()
        before = driver.core.snapshot()
        driver.pause()
        assert driver.core.snapshot() == before
        driver.pause("abort")
        assert driver.history.ends.keys() == driver.requests.keys()

    def test_a_resume_of_an_engine_that_is_not_paused_changes_nothing(self) -> None:
        driver = busy()
        before = driver.core.snapshot()
        assert not driver.tell(Resume())
        assert driver.core.snapshot() == before

    def test_on_p_admits_no_request_and_resuming_admits_the_waiting_requests(self) -> None:
        driver = Driver(config(role=Role.PREFILL))
        driver.add(range(9), max_tokens=1)
        driver.pause()
        late = driver.add([7], max_tokens=1)
        assert driver.core.snapshot().num_waiting == 2
        driver.tell(Resume())
        assert driver.core.snapshot().num_waiting == 0
        driver.run()
        driver.assert_answered(late)

    def test_time_goes_on(self) -> None:
        driver = Driver(config(preprocess_timeout=5.0))
        slow = driver.add([1], preprocess=b"image")
        driver.pause()
        driver.wait(5.0)
        assert driver.ended(slow) is not None


class TestPauseForNewWeights:
    """Nothing that was computed before is found afterwards: the oracle's KV and encoder outputs know their weights."""

    @pytest.mark.parametrize("depth", [1, 2])
    @pytest.mark.parametrize("role", list(Role))
    def test_all_is_computed_anew(self, depth: int, role: Role) -> None:
        driver = Driver(config(role=role, max_num_batched_tokens=8), depth=depth)
        max_tokens = 1 if role is Role.PREFILL else 9
        for start in range(3):
            driver.add(range(start, start + 12), max_tokens=max_tokens, spans=[Span(0, 3, b"a", 3)])
        for _ in range(2):
            driver.step()
        driver.launch()
        driver.pause(reset=True)
        while driver.in_flight:
            driver.answer()
        driver.device.change_weights()
        driver.tell(Resume())
        driver.run()
        for expected in (0, 8):  # and what is computed from here on is found as ever
            late = driver.add(range(30, 42), max_tokens=max_tokens, spans=[Span(0, 3, b"a", 3)])
            driver.run()
            assert driver.history.started[late.uid] == expected
        driver.assert_answered()
        driver.assert_empty()

    def test_what_a_last_step_still_brings_is_found_by_no_request(self) -> None:
        driver = Driver(config())
        driver.add(range(9), max_tokens=1)
        driver.launch()
        driver.pause(reset=True)
        driver.answer()
        driver.device.change_weights()
        driver.tell(Resume())
        late = driver.add(range(9), max_tokens=2)
        driver.run()
        assert driver.history.started[late.uid] == 0
        driver.assert_answered()

    @pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
    def test_reservations_end_for_what_they_found_is_stale(self, role: Role) -> None:
        driver = Driver(config(role=role))
        driver.add(range(9), max_tokens=1)
        driver.run()
        request = driver.make(range(9), max_tokens=1)
        reservation = driver.reserve(request)
        assert reservation is not None and reservation.num_cached_tokens == 8
        driver.pause(reset=True)
        assert driver.ended(request) == "abort: the engine was paused and its cache reset"
        driver.assert_empty()

    def test_without_a_reset_the_cache_stays(self) -> None:
        driver = Driver(config())
        driver.add(range(9), max_tokens=1)
        driver.run()
        driver.pause()
        driver.tell(Resume())
        late = driver.add(range(9), max_tokens=1)
        driver.run()
        assert driver.history.started[late.uid] == 8
