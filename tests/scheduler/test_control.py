"""What an operator does to all requests at once: preempt all, clear, reset the cache, wait for the device."""

from collections.abc import Callable

import pytest

from headway.request import RequestStatus, Span
from headway.scheduler import (
    Clear,
    PreemptAll,
    ResetPrefixCache,
    StaticAllocation,
)
from tests.scheduler.driver import Driver, busy, config


class TestPreemptAll:
    @pytest.mark.parametrize("depth", [1, 2])
    @pytest.mark.parametrize("steps", range(8))
    @pytest.mark.parametrize("caching", [True, False])
    def test_at_any_moment_all_get_their_answers(self, depth: int, steps: int, caching: bool) -> None:
        driver = Driver(config(max_num_batched_tokens=8, enable_prefix_caching=caching), depth=depth)
        for start in range(3):
            driver.add(range(start, start + 7), max_tokens=9)
        for _ in range(steps):
            driver.step()
            driver.tell(PreemptAll())
        driver.run()
        driver.assert_answered()
        driver.assert_empty()

    def test_counts_each_preemption(self) -> None:
        driver = busy()
        driver.tell(PreemptAll())
        assert driver.core.snapshot().num_preemptions == 3
        progress = driver.progress(driver.requests[1])
        assert progress is not None
        assert (progress.status, progress.num_preemptions) == (RequestStatus.PREEMPTED, 1)
        assert (progress.num_blocks, progress.num_computed_tokens) == (0, 0)

    def test_leaves_an_idle_engine_alone(self) -> None:
        driver = Driver(config())
        driver.add([1], preprocess=b"image")
        before = driver.core.snapshot()
        driver.tell(PreemptAll())
        assert driver.core.snapshot() == before

    def test_under_static_allocation_too(self) -> None:
        driver = Driver(config(), StaticAllocation())
        driver.add(range(5), max_tokens=9)
        driver.step()
        driver.tell(PreemptAll())
        driver.run()
        driver.assert_answered()


class TestClear:
    def test_is_a_barrier(self) -> None:
        """What was added before it ends; what comes after it is not touched."""
        driver = busy()
        before = list(driver.requests)
        driver.tell(Clear())
        after = driver.add(range(12), max_tokens=4)
        driver.run()
        assert {driver.ended(driver.requests[uid]) for uid in before} == {"abort: the engine's data was cleared"}
        driver.assert_answered(after)
        driver.assert_empty()

    def test_forgets_what_is_cached(self) -> None:
        driver = Driver(config())
        driver.add(range(9), max_tokens=1)
        driver.run()
        driver.tell(Clear())
        assert len(driver.state.prefix) == 0
        late = driver.add(range(9), max_tokens=1)
        driver.run()
        assert driver.history.started[late.uid] == 0

    @pytest.mark.parametrize("depth", [1, 2])
    def test_lets_nothing_of_a_step_in_flight_through(self, depth: int) -> None:
        driver = busy(depth)
        driver.tell(Clear())
        late = driver.add(range(20), max_tokens=4)
        driver.launch()
        for _ in range(depth):
            assert not driver.answer().tokens  # they are of the old ones
        driver.run()
        assert driver.history.started[late.uid] == 0
        driver.assert_answered(late)

    def test_of_an_empty_engine_does_nothing(self) -> None:
        driver = Driver(config())
        assert not driver.tell(Clear())

    def test_does_not_resume_a_paused_one(self) -> None:
        driver = busy()
        driver.pause()
        driver.tell(Clear())
        driver.add([7])
        driver.answer()
        assert driver.launch() is None


class TestResetPrefixCache:
    def test_answers_how_many_blocks_were_cached(self) -> None:
        driver = Driver(config())
        driver.add(range(13), max_tokens=1)
        driver.run()
        assert driver.ask(ResetPrefixCache) == 3
        assert driver.ask(ResetPrefixCache) == 0
        snapshot = driver.core.snapshot()
        assert (snapshot.num_blocks_free, snapshot.num_blocks_evictable) == (39, 0)

    def test_what_a_running_request_has_computed_is_never_found_again(self) -> None:
        driver = Driver(config())
        long = driver.add(range(9), max_tokens=20)
        driver.step()
        assert driver.ask(ResetPrefixCache) == 2  # in use, and cached
        twin = driver.add(range(9), max_tokens=3)
        driver.run()
        assert driver.history.started[twin.uid] == 0
        rest = driver.add([*range(9), *driver.history.tokens[long.uid]], max_tokens=2)
        driver.run()
        assert driver.history.started[rest.uid] == 8  # what the twin has computed since, and no more
        driver.assert_answered()

    @pytest.mark.parametrize("moment", range(1, 6))
    @pytest.mark.parametrize("depth", [1, 2])
    @pytest.mark.parametrize("output_caching", [True, False])
    def test_nor_is_anything_that_comes_on_top_of_it(self, moment: int, depth: int, output_caching: bool) -> None:
        """The oracle goes over to other weights with the reset: it notices if any KV of before is read by a newcomer.
        A request that has blocks goes on with them."""
        driver = Driver(config(max_num_batched_tokens=8, enable_output_caching=output_caching), depth=depth)
        for start in (0, 0, 4):
            driver.add(range(start, start + 12), max_tokens=10)
        for _ in range(moment):
            driver.step()
        driver.launch()
        seated = [entry.uid for entry in driver.state.occupants if entry is not None]
        driver.ask(ResetPrefixCache)
        driver.device.change_weights(seated)
        for start in (0, 4):
            driver.add(range(start, start + 12), max_tokens=10)
        driver.run()
        driver.assert_answered()
        driver.assert_empty()

    def test_encoder_outputs_go_with_it(self) -> None:
        driver = Driver(config())
        image = Span(0, 3, b"a", 3)
        driver.add(range(9), max_tokens=2, spans=[image])
        driver.run()
        driver.ask(ResetPrefixCache)
        driver.device.change_weights()
        again = driver.add(range(9), max_tokens=2, spans=[image])
        batch = driver.launch()
        assert batch is not None
        assert (batch.encode, batch.encoder_evicted) == (((again.uid, image),), (b"a",))
        driver.answer()
        driver.run()
        driver.assert_answered()

    def test_without_prefix_caching_there_is_nothing_to_forget(self) -> None:
        driver = Driver(config(enable_prefix_caching=False))
        driver.add(range(9), max_tokens=12)
        driver.step()
        assert driver.ask(ResetPrefixCache) == 0
        driver.run()
        driver.assert_answered()


class TestAwaitSteps:
    def test_is_answered_at_once_when_nothing_is_in_flight(self) -> None:
        driver = Driver(config())
        reply = driver.await_steps()
        assert driver.awaited == [reply]

    def test_is_answered_by_the_result_of_the_last_step_that_was_in_flight(self) -> None:
        driver = Driver(config(), depth=2)
        driver.add([1, 2], max_tokens=12)
        driver.launch()
        driver.launch()
        reply = driver.await_steps()
        driver.answer()
        assert reply not in driver.awaited
        driver.launch()  # not among those that were asked for
        driver.answer()
        assert reply in driver.awaited and len(driver.in_flight) == 1

    def test_asked_at_different_times_is_answered_at_different_times(self) -> None:
        driver = Driver(config(), depth=2)
        driver.add([1, 2], max_tokens=12)
        driver.launch()
        first = driver.await_steps()
        driver.launch()
        second, third = driver.await_steps(), driver.await_steps()
        driver.answer()
        assert set(driver.awaited) == {first}
        driver.answer()
        assert set(driver.awaited) == {first, second, third}

    @pytest.mark.parametrize(
        "end", [lambda d: d.answer(error="boom"), lambda d: d.lose_device()], ids=["failed", "lost"]
    )
    def test_a_failed_step_and_a_lost_device_answer_too(self, end: Callable[[Driver], object]) -> None:
        driver = Driver(config())
        driver.add([1, 2])
        driver.launch()
        reply = driver.await_steps()
        end(driver)
        assert reply in driver.awaited

    @pytest.mark.parametrize("mode", ["abort", "preempt"])
    @pytest.mark.parametrize("depth", [1, 2])
    def test_tells_after_a_pause_when_the_device_is_idle(self, mode: str, depth: int) -> None:
        driver = busy(depth)
        driver.pause(mode, reset=True)
        reply = driver.await_steps()
        for _ in range(depth):
            assert reply not in driver.awaited
            driver.answer()
        assert reply in driver.awaited and not driver.core.snapshot().num_in_flight
