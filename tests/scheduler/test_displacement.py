"""A request of higher priority takes slot and blocks from running ones: if that lets it in, and never to and fro."""

import pytest

from headway.request import FinishReason, Span
from headway.scheduler import StaticAllocation
from tests.scheduler.driver import Driver, config

LOW, HIGH = 5, 0


def num_preemptions(driver: Driver) -> int:
    return driver.core.snapshot().num_preemptions


class TestSlots:
    @pytest.mark.parametrize("depth", [1, 2])
    def test_an_urgent_request_gets_the_slot_of_one_that_is_less_so(self, depth: int) -> None:
        driver = Driver(config(max_num_seqs=1), depth=depth)
        low = driver.add([1, 2], max_tokens=9, priority=LOW)
        driver.step()
        high = driver.add([3, 4], max_tokens=9, priority=HIGH)
        driver.launch()
        assert driver.admissions() == [low.uid, high.uid]  # in the very next step
        driver.run()
        assert driver.admissions() == [low.uid, high.uid, low.uid]
        driver.assert_answered()
        driver.assert_empty()

    def test_among_equals_no_request_is_displaced(self) -> None:
        driver = Driver(config(max_num_seqs=1))
        driver.add([1, 2], max_tokens=9, priority=3)
        driver.step()
        driver.add([3, 4], max_tokens=9, priority=3)
        driver.run()
        assert num_preemptions(driver) == 0

    def test_a_free_slot_is_taken_first(self) -> None:
        driver = Driver(config(max_num_seqs=2))
        driver.add([1, 2], max_tokens=9, priority=LOW)
        driver.step()
        driver.add([3, 4], max_tokens=9, priority=HIGH)
        driver.run()
        assert num_preemptions(driver) == 0
        driver.assert_answered()

    def test_the_lowest_priority_pays_and_of_those_the_policys_choice(self) -> None:
        driver = Driver(config(max_num_seqs=4, victim="last-in-line"))
        for priority in (7, 2, 7, 1):
            driver.add([priority, 1], max_tokens=20, priority=priority)
        driver.step()
        driver.step()
        driver.add([3, 4], max_tokens=20, priority=HIGH)
        driver.launch()
        assert [entry.uid for entry in driver.state.waiting] == [3]

    def test_each_urgent_one_displaces_one(self) -> None:
        driver = Driver(config(max_num_seqs=4))
        for i in range(4):
            driver.add([i, 1], max_tokens=20, priority=LOW)
        driver.step()
        for i in range(3):
            driver.add([i, 2], max_tokens=3, priority=HIGH)
        for _ in range(3):
            driver.step()
        assert num_preemptions(driver) == 3
        driver.run()
        driver.assert_answered()

    def test_can_be_switched_off(self) -> None:
        driver = Driver(config(max_num_seqs=1, enable_priority_preemption=False))
        driver.add([1, 2], max_tokens=9, priority=LOW)
        driver.step()
        driver.add([3, 4], max_tokens=9, priority=HIGH)
        driver.run()
        assert num_preemptions(driver) == 0
        driver.assert_answered()

    def test_one_whose_last_step_is_launched_is_left_alone(self) -> None:
        """It gives its slot back by itself, with the answer."""
        driver = Driver(config(max_num_seqs=1), depth=2)
        low = driver.add([1, 2], max_tokens=1, priority=LOW)
        driver.launch()
        driver.add([3, 4], max_tokens=2, priority=HIGH)
        assert driver.launch() is None
        driver.run()
        assert num_preemptions(driver) == 0
        driver.assert_answered(low)

    def test_one_in_the_middle_of_its_prompt_can_be_displaced(self) -> None:
        driver = Driver(config(max_num_seqs=1, max_num_batched_tokens=8))
        driver.add(range(20), max_tokens=3, priority=LOW)
        driver.step()
        driver.add([3, 4], max_tokens=3, priority=HIGH)
        driver.run()
        assert num_preemptions(driver) == 1
        driver.assert_answered()


class TestBlocks:
    """8 blocks. Each victim gives up its own, and no more of them go than must."""

    def three(self, **changes: object) -> Driver:
        """Three of low priority, that hold 2 blocks each, and soon 3, 2 of them free."""
        driver = Driver(config(num_blocks=9, reserve="none", max_num_batched_tokens=32, **changes))
        for start in (0, 10, 20):
            driver.add(range(start, start + 7), max_tokens=9, priority=LOW)
        driver.step()
        return driver

    @pytest.mark.parametrize(("num_prompt", "displaced"), [(8, 0), (9, 1), (16, 1), (17, 2), (24, 2), (28, 3)])
    def test_as_many_go_as_suffice(self, num_prompt: int, displaced: int) -> None:
        driver = self.three()
        high = driver.add(range(30, 30 + num_prompt), max_tokens=2, priority=HIGH)
        driver.launch()
        assert high.uid in driver.admissions()
        assert num_preemptions(driver) == displaced
        driver.run()
        driver.assert_answered()

    def test_no_request_goes_when_all_of_them_would_not_suffice(self) -> None:
        driver = Driver(config(num_blocks=9, reserve="none", max_num_batched_tokens=32))
        driver.add(range(16), max_tokens=9, priority=HIGH)  # 4 blocks
        driver.add(range(20, 27), max_tokens=9, priority=LOW)  # 2 blocks
        driver.step()
        high = driver.add(range(30, 48), max_tokens=2, priority=HIGH)  # 5 blocks, of 4 that could be had
        driver.launch()
        assert num_preemptions(driver) == 0 and high.uid not in driver.admissions()
        driver.run()
        driver.assert_answered()

    def test_blocks_that_are_shared_with_those_that_stay_do_not_count(self) -> None:
        driver = Driver(config(num_blocks=9, reserve="none", max_num_batched_tokens=32))
        driver.add(range(17), max_tokens=4, priority=HIGH)  # 5 blocks
        driver.step()
        driver.add(range(17), max_tokens=4, priority=LOW)  # 1 of its own
        driver.step()
        driver.add(range(30, 46), max_tokens=1, priority=HIGH)  # 4 blocks; 2 are there, 1 more could be had
        driver.launch()
        assert num_preemptions(driver) == 0

    @pytest.mark.parametrize(("num_prompt", "displaced"), [(17, 0), (20, 0), (25, 1)])
    def test_nothing_is_kept_in_reserve_for_one_that_could_be_displaced(self, num_prompt: int, displaced: int) -> None:
        """It decodes, and 5 of the 6 blocks left are kept for what it may still generate: from its like, and no others.
        When blocks are short it is the first to make way."""
        driver = Driver(config(num_blocks=9, max_num_batched_tokens=64))
        low = driver.add(range(7), max_tokens=25, priority=LOW)
        driver.step()
        like = driver.add(range(10, 17), max_tokens=3, priority=LOW)
        driver.launch()
        assert driver.admissions() == [low.uid]
        high = driver.add(range(10, 10 + num_prompt), max_tokens=3, priority=HIGH)
        driver.launch()
        assert driver.admissions() == [low.uid, high.uid]
        assert num_preemptions(driver) == displaced
        driver.run()
        assert driver.admissions()[-1] in (low.uid, like.uid)
        driver.assert_answered()

    def test_where_no_request_is_displaced_the_reserve_is_kept_from_all(self) -> None:
        driver = Driver(config(num_blocks=9, max_num_batched_tokens=64, enable_priority_preemption=False))
        low = driver.add(range(7), max_tokens=25, priority=LOW)
        driver.step()
        driver.add(range(10, 27), max_tokens=3, priority=HIGH)
        driver.launch()
        assert driver.admissions() == [low.uid]

    def test_a_request_that_finds_its_prompt_in_the_cache_needs_no_blocks_of_others(self) -> None:
        driver = Driver(config(num_blocks=9, reserve="none", max_num_batched_tokens=32))
        driver.add(range(21), max_tokens=3, priority=LOW)  # 6 blocks
        driver.step()
        high = driver.add(range(21), max_tokens=3, priority=HIGH)  # 6 blocks, 5 of them shared
        driver.launch()
        assert high.uid in driver.admissions()
        assert num_preemptions(driver) == 0
        driver.run()
        driver.assert_answered()

    def test_under_static_allocation_priorities_displace_too(self) -> None:
        driver = Driver(config(num_blocks=9), StaticAllocation())
        low = driver.add(range(8), max_tokens=24, priority=LOW)
        driver.step()
        high = driver.add(range(10, 18), max_tokens=24, priority=HIGH)
        driver.run()
        assert driver.admissions() == [low.uid, high.uid, low.uid]
        driver.assert_answered()

    def test_an_image_whose_encoder_output_a_victim_held_can_be_had(self) -> None:
        driver = Driver(config(max_num_seqs=1, encoder_cache_size=4))
        driver.add(range(6), max_tokens=5, priority=LOW, spans=[Span(0, 4, b"a", 4)])
        driver.launch()
        driver.add(range(6), max_tokens=5, priority=HIGH, spans=[Span(0, 4, b"b", 4)])
        driver.run()
        driver.assert_answered()


class TestNotToAndFro:
    def test_a_victim_does_not_displace_in_return(self) -> None:
        driver = Driver(config(max_num_seqs=1))
        driver.add([1, 2], max_tokens=20, priority=LOW)
        driver.step()
        driver.add([3, 4], max_tokens=20, priority=HIGH)
        driver.run()
        assert num_preemptions(driver) == 1

    @pytest.mark.parametrize("first", ["old", "urgent"])
    def test_nor_with_ageing_where_the_first_in_line_is_not_the_most_urgent(self, first: str) -> None:
        """Ten seconds are worth one level: priority 5 at time 0 stands before priority 0 at time 1000."""
        driver = Driver(config(max_num_seqs=1, ageing_seconds=10.0))
        old, urgent = {"priority": 5, "arrival_time": 0.0}, {"priority": 0, "arrival_time": 1000.0}
        for options in (old, urgent) if first == "old" else (urgent, old):
            driver.add([1, 2], max_tokens=20, **options)
            driver.step()
        driver.run()
        assert num_preemptions(driver) == 0
        assert driver.admissions() == [1, 2]
        driver.assert_answered()

    def test_with_ageing_the_more_urgent_of_the_same_time_displaces_still(self) -> None:
        driver = Driver(config(max_num_seqs=1, ageing_seconds=10.0))
        driver.add([1, 2], max_tokens=20, priority=LOW)
        driver.step()
        driver.wait(20.0)
        driver.add([3, 4], max_tokens=20, priority=HIGH)
        driver.run()
        assert driver.admissions() == [1, 2, 1]

    def test_no_request_makes_way_for_a_request_that_cannot_begin(self) -> None:
        """An urgent prompt is long, and so is one that is under way: it must wait for that one, slot or no slot. Were
        a decoding request to make way, it would be let in again in the same pass, to make way again in the next."""
        driver = Driver(config(max_num_seqs=2, max_model_len=128, num_blocks=100))
        under_way = driver.add(range(100), max_tokens=2, priority=HIGH)
        decoding = driver.add([1, 2], max_tokens=30, priority=LOW)
        driver.step()
        urgent = driver.add(range(1, 60), max_tokens=2, priority=HIGH)
        driver.run()
        assert num_preemptions(driver) <= 1
        assert driver.admissions()[:3] == [under_way.uid, decoding.uid, urgent.uid]
        driver.assert_answered()

    def test_nor_for_one_that_must_wait_for_partial_prompts(self) -> None:
        driver = Driver(
            config(
                max_num_seqs=2,
                max_model_len=128,
                num_blocks=100,
                max_num_partial_prefills=1,
                long_prefill_token_threshold=8,
                max_long_partial_prefills=4,
            )
        )
        driver.add(range(100), max_tokens=2, priority=HIGH)
        driver.add([1, 2], max_tokens=30, priority=LOW)
        driver.step()
        driver.add(range(1, 12), max_tokens=2, priority=HIGH)
        driver.run()
        assert num_preemptions(driver) <= 1
        driver.assert_answered()

    @pytest.mark.parametrize("seed", range(20))
    def test_a_crowd_of_all_priorities_comes_to_an_end_with_few_of_them(self, seed: int) -> None:
        """Each displacement lets a more urgent one in. So there are fewer than arrivals, and all else is growth."""
        driver = Driver(config(max_num_seqs=2, num_blocks=40, max_num_batched_tokens=8), depth=1 + seed % 2)
        for i in range(12):
            length = 1 + (seed * 7 + i * 5) % 20
            driver.add(range(i, i + length), max_tokens=6, priority=(seed + i * 3) % 4)
            driver.step()
        driver.run()
        assert num_preemptions(driver) < 12
        driver.assert_answered()
        assert set(driver.history.reasons(driver.requests)) == {FinishReason.LENGTH}
