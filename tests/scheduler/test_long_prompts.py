"""Long prompts beside short ones, and chunks that end at multiples."""

import pytest

from tests.scheduler.driver import Driver, config


class TestLongPrompts:
    """Budget 16 tokens a step; a prompt with more than 8 left is long."""

    def test_leave_room_for_short_ones(self) -> None:
        driver = Driver(config(max_model_len=64, num_blocks=80))
        driver.add(range(60), max_tokens=2)
        driver.step()
        short = [driver.add(range(i, i + 4), max_tokens=2) for i in range(2)]
        batch = driver.step()
        assert batch is not None and batch.num_new_tokens.tolist() == [8, 4, 4]
        assert all(driver.history.tokens[request.uid] for request in short)
        driver.run()
        driver.assert_answered()

    def test_take_all_that_no_other_request_wants(self) -> None:
        driver = Driver(config(max_model_len=64, num_blocks=80))
        driver.add(range(60), max_tokens=2)
        driver.run()
        assert [batch.num_tokens for batch in driver.batches[:4]] == [16, 16, 16, 12]
        assert driver.core.snapshot().num_prompt_tokens == 60

    def test_wait_for_one_another_while_short_ones_pass(self) -> None:
        driver = Driver(config(max_model_len=64, num_blocks=80))
        first, second = driver.add(range(40), max_tokens=1), driver.add(range(1, 41), max_tokens=1)
        short = driver.add([1, 2], max_tokens=1)
        driver.run()
        assert driver.admissions() == [first.uid, short.uid, second.uid]
        driver.assert_answered()

    def test_come_in_next_when_their_turn_has_come(self) -> None:
        """However many short ones come: the first long one ends, then the second is the head."""
        driver = Driver(config(max_model_len=64, num_blocks=80))
        driver.add(range(40), max_tokens=1)
        second = driver.add(range(1, 41), max_tokens=1)
        for i in range(12):
            driver.add([i, i + 1], max_tokens=1)
            driver.step()
        assert driver.ended(second) == "length"
        driver.run()
        driver.assert_answered()

    def test_several_at_once_if_so_configured(self) -> None:
        driver = Driver(
            config(max_model_len=64, num_blocks=80, long_prefill_token_threshold=5, max_long_partial_prefills=3)
        )
        for i in range(4):
            driver.add(range(i, i + 30), max_tokens=1)
        batch = driver.step()
        assert batch is not None and batch.num_new_tokens.tolist() == [6, 5, 5]  # what is left tops up the first
        driver.run()
        driver.assert_answered()

    def test_are_not_long_by_what_the_cache_has_of_them(self) -> None:
        """A conversation that goes on is long, and nearly all of it is there."""
        driver = Driver(config(max_model_len=64, num_blocks=80))
        driver.add(range(41), max_tokens=1)
        driver.run()
        other = driver.add(range(50, 90), max_tokens=1)
        more = driver.add([*range(40), 7, 7], max_tokens=1)
        batch = driver.step()
        assert batch is not None and driver.admissions()[1:] == [other.uid, more.uid]
        assert driver.history.started[more.uid] == 40
        driver.run()
        driver.assert_answered()

    def test_partial_prompts_at_once_are_bounded(self) -> None:
        driver = Driver(config(max_model_len=64, num_blocks=80, max_num_partial_prefills=1))
        driver.add(range(7), max_tokens=1)
        driver.add(range(20, 32), max_tokens=1)
        driver.add(range(1, 13), max_tokens=1)
        batch = driver.step()
        assert batch is not None and batch.num_new_tokens.tolist() == [7, 9]
        batch = driver.step()
        assert batch is not None and batch.num_new_tokens.tolist() == [3, 12]
        driver.run()
        driver.assert_answered()

    @pytest.mark.parametrize("depth", [1, 2])
    def test_of_all_kinds_get_their_answers(self, depth: int) -> None:
        for threshold in (None, 0, 3):
            for at_once in (0, 1, 2):
                driver = Driver(
                    config(
                        max_model_len=64,
                        num_blocks=40,
                        long_prefill_token_threshold=threshold,
                        max_num_partial_prefills=at_once,
                    ),
                    depth=depth,
                )
                for i in range(8):
                    driver.add(range(i, i + 3 + i * 7), max_tokens=5)
                driver.run()
                driver.assert_answered()


class TestDeterministicMode:
    """Chunks end at multiples of 16, whatever else runs; budget 64."""

    def ends_of(self, driver: Driver, uid: int) -> list[int]:
        slots = {a.slot for batch in driver.batches for a in batch.admissions if a.request.uid == uid}
        (slot,) = slots
        return [
            int(batch.positions[row] + batch.num_new_tokens[row])
            for batch in driver.batches
            for row in range(batch.num_decodes, len(batch))
            if batch.slots[row] == slot
        ]

    def driver(self, **changes: object) -> Driver:
        return Driver(
            config(
                max_num_seqs=8,
                max_num_batched_tokens=40,
                max_model_len=128,
                num_blocks=300,
                deterministic=True,
                enable_prefix_caching=False,
                long_prefill_token_threshold=0,
                **changes,
            )
        )

    @pytest.mark.parametrize("num_others", range(8))
    def test_the_split_of_a_prompt_falls_on_multiples(self, num_others: int) -> None:
        driver = self.driver()
        for i in range(num_others):
            driver.add(range(i, i + 3 * i + 1), max_tokens=20)
        driver.step()
        request = driver.add(range(75), max_tokens=2)
        driver.run()
        ends = self.ends_of(driver, request.uid)
        assert ends[-1] == 75 and all(end % 16 == 0 for end in ends[:-1])
        driver.assert_answered()

    def test_a_last_piece_is_taken_whole_or_not_at_all(self) -> None:
        driver = self.driver()
        driver.add(range(30), max_tokens=2)
        late = driver.add(range(40, 55), max_tokens=2)  # 15 tokens, and there is room for 10
        batch = driver.step()
        assert batch is not None and batch.num_new_tokens.tolist() == [30]
        driver.run()
        assert self.ends_of(driver, late.uid) == [15]
        driver.assert_answered()

    def test_a_prompt_that_must_wait_for_the_next_multiple_gets_there(self) -> None:
        """Seven decodes leave 33 tokens; there is always room for 16 of a prompt."""
        driver = self.driver()
        for i in range(7):
            driver.add([i], max_tokens=60)
        driver.step()
        request = driver.add(range(70), max_tokens=2)
        for _ in range(5):
            driver.step()
        assert self.ends_of(driver, request.uid) == [32, 64, 70]
        driver.run()
        driver.assert_answered()
