"""What drafts of k tokens cost: blocks for the places ahead, k + 1 tokens of the budget for each that decodes."""

import numpy as np
import pytest

from headway.scheduler import PreemptAll, StaticAllocation
from headway.scheduler.state.slot_table import EMPTY
from tests.scheduler.driver import Driver, config


def of(k: int, depth: int = 1, **changes: object) -> Driver:
    return Driver(config(num_speculative_tokens=k, max_num_batched_tokens=32, **changes), depth=depth)


def assert_places_ahead(driver: Driver, k: int) -> None:
    """A request with a decode in the last batch has blocks for its token and the drafts, up to its limit, and no block
    more."""
    table, batch = driver.state.table, driver.batches[-1]
    for row in range(batch.num_decodes):
        slot, position = int(batch.slots[row]), int(batch.positions[row])
        num_places = min(position + 1 + k, int(table.limit[slot]))
        assert table.num_blocks[slot] == -(-num_places // driver.config.block_size)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("length", range(1, 10))
@pytest.mark.parametrize("depth", [1, 2])
def test_there_are_blocks_for_the_drafts_at_every_step_and_none_beyond_the_limit(
    k: int, length: int, depth: int
) -> None:
    driver = of(k, depth)
    request = driver.add(range(length), max_tokens=13)
    while driver.launch() is not None:
        assert_places_ahead(driver, k)
        if len(driver.in_flight) == depth:
            driver.answer()
    driver.run()
    driver.assert_answered(request)
    driver.assert_empty()


def test_the_table_changes_tell_the_device_of_each_block_before_its_first_place_is_needed() -> None:
    driver = of(3)
    driver.add(range(4), max_tokens=12)
    told: set[tuple[int, int]] = set()
    while (batch := driver.launch()) is not None:
        told |= set(zip(batch.table_slots.tolist(), batch.table_columns.tolist(), strict=True))
        for row in range(batch.num_decodes):
            last = min(int(batch.positions[row]) + 3, 15)
            assert (int(batch.slots[row]), last // 4) in told
        driver.answer()


def test_the_prompt_alone_comes_with_places_for_its_first_drafts() -> None:
    driver = of(4)
    driver.add(range(8), max_tokens=12)
    driver.launch()
    assert driver.state.table.num_blocks[0] == 3


def test_a_short_answer_needs_no_places_beyond_its_end() -> None:
    driver = of(4)
    driver.add(range(7), max_tokens=1)
    driver.launch()
    assert driver.state.table.num_blocks[0] == 2


def test_each_that_decodes_takes_k_and_one_of_the_budget() -> None:
    driver = Driver(config(num_speculative_tokens=3, max_num_batched_tokens=16, long_prefill_token_threshold=0))
    for i in range(3):
        driver.add([i], max_tokens=12)
    driver.step()
    driver.add(range(12), max_tokens=2)
    batch = driver.step()
    assert batch is not None and batch.num_decodes == 3
    assert batch.num_new_tokens.tolist() == [1, 1, 1, 4]  # 16 less 3 x 4
    driver.run()
    driver.assert_answered()


def test_a_budget_that_is_all_taken_by_drafts_lets_no_newcomer_in_before_a_request_ends() -> None:
    driver = Driver(config(max_num_seqs=4, num_speculative_tokens=3, max_num_batched_tokens=16))
    for i in range(4):
        driver.add([i], max_tokens=4)
    driver.add([9, 9], max_tokens=2)
    driver.run()
    assert driver.admissions() == [1, 2, 3, 4, 5]
    driver.assert_answered()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("caching", [True, False])
def test_preemption_wins_blocks_for_the_places_ahead(depth: int, k: int, caching: bool) -> None:
    driver = of(k, depth, num_blocks=9, enable_prefix_caching=caching, reserve="none")
    for start in (0, 10, 20):
        driver.add(range(start, start + 6), max_tokens=26)
    driver.run()
    assert driver.core.snapshot().num_preemptions > 0
    assert driver.admissions().count(1) == 1
    driver.assert_answered()
    driver.assert_empty()


@pytest.mark.parametrize("steps", range(6))
def test_a_preemption_of_all_is_exact(steps: int) -> None:
    driver = of(2, depth=2)
    for start in range(3):
        driver.add(range(start, start + 5), max_tokens=15)
    for _ in range(steps):
        driver.step()
    driver.tell(PreemptAll())
    driver.run()
    driver.assert_answered()


def test_static_blocks_are_enough() -> None:
    driver = Driver(config(num_speculative_tokens=4, max_num_batched_tokens=32, num_blocks=9), StaticAllocation())
    driver.add(range(8), max_tokens=24)
    while driver.launch() is not None:
        assert driver.state.table.num_blocks[0] == 8
        driver.answer()
    driver.assert_answered()


def test_a_block_of_one_token_holds_one_draft() -> None:
    driver = of(1, block_size=1, num_blocks=33)
    driver.add(range(5), max_tokens=12)
    driver.add(range(8), max_tokens=12)
    driver.run()
    driver.assert_answered()


def test_the_last_token_to_be_had_is_no_place_for_a_draft() -> None:
    """At max_model_len the table has no column more."""
    driver = of(4)
    driver.add(range(20), max_tokens=12)
    while driver.launch() is not None:
        driver.answer()
    assert np.all(driver.state.table.status == EMPTY)
    driver.assert_answered()
