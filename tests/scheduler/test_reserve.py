"""Reserves: careful at the start, bolder with every step, put right by a preemption."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headway.config import ReserveName, SchedulerConfig
from headway.scheduler.policies.reserve import BlocksReserve, NoReserve, RatioReserve, Reserve, reserve_of
from headway.scheduler.state.slot_table import SlotTable


def table_of(**columns: list[int]) -> SlotTable:
    """A table whose columns begin with these values."""
    table = SlotTable(8, blocks_per_request=8, block_size=16)
    for name, values in columns.items():
        getattr(table, name)[: len(values)] = values
    return table


def rows(*slots: int) -> np.ndarray:
    return np.array(slots, dtype=np.intp)


TABLE = table_of(num_prompt=[10, 20, 30], num_tokens=[20, 20, 50], limit=[180, 180, 50])
NO_ROWS = rows()


def after(reserve: Reserve, num_steps: int) -> Reserve:
    for _ in range(num_steps):
        reserve.step_launched()
    return reserve


def test_no_reserve_asks_nothing_whatever_happens() -> None:
    reserve = after(NoReserve(), 3)
    reserve.preempted(TABLE, rows(0, 1))
    assert reserve.blocks(TABLE, rows(0, 1)) == 0


@pytest.mark.parametrize("reserve", [NoReserve(), BlocksReserve(), RatioReserve(16)])
def test_where_no_request_decodes_nothing_is_reserved(reserve: Reserve) -> None:
    reserve.preempted(TABLE, NO_ROWS)
    blocks = reserve.blocks(TABLE, NO_ROWS)
    assert blocks == 0 and type(blocks) is int


# -- so many blocks each -----------------------------------------------------------------------------------------------


def test_blocks_each_fall_with_every_step_and_are_rounded_up_together() -> None:
    reserve = BlocksReserve()
    assert reserve.blocks(TABLE, rows(0, 1)) == 32
    assert after(reserve, 1).blocks(TABLE, rows(0, 1)) == 32  # 31.95
    assert after(reserve, 19).blocks(TABLE, rows(0, 1)) == 31  # 2 x 15.5
    assert reserve.blocks(TABLE, rows(0)) == 16
    assert type(reserve.blocks(TABLE, rows(0))) is int


def test_blocks_each_fall_to_nothing_and_stay_there() -> None:
    reserve = after(BlocksReserve(), 639)
    assert reserve.blocks(TABLE, rows(0)) == 1
    assert after(reserve, 1).blocks(TABLE, rows(0, 1, 2)) == 0
    assert after(reserve, 1000).blocks(TABLE, rows(0, 1, 2)) == 0


def test_idle_turns_do_not_make_it_bolder() -> None:
    """Only launched steps do; asking is no step."""
    for reserve in (BlocksReserve(), RatioReserve(16)):
        before = reserve.blocks(TABLE, rows(0, 1))
        assert {reserve.blocks(TABLE, rows(0, 1)) for _ in range(1000)} == {before}


def test_a_preemption_resets_the_blocks_each() -> None:
    reserve = after(BlocksReserve(per_request=4.0, decay=0.5), 100)
    reserve.preempted(TABLE, rows(0))
    assert reserve.blocks(TABLE, rows(0)) == 4
    assert after(reserve, 2).blocks(TABLE, rows(0)) == 3


# -- a share of what may come ------------------------------------------------------------------------------------------


def test_the_ratio_is_of_the_tokens_that_may_still_be_generated() -> None:
    reserve = RatioReserve(16, ratio=0.5)
    assert reserve.blocks(TABLE, rows(0)) == 5  # half of 160 tokens
    assert reserve.blocks(TABLE, rows(0, 1)) == 10
    assert reserve.blocks(TABLE, rows(2)) == 0  # at its limit
    assert type(reserve.blocks(TABLE, rows(0))) is int


def test_it_is_rounded_up_over_all_together() -> None:
    table = table_of(num_tokens=[10, 10], limit=[12, 12])
    assert RatioReserve(16, ratio=0.5).blocks(table, rows(0, 1)) == 1
    assert RatioReserve(2, ratio=0.75).blocks(table, rows(0, 1)) == 2  # 3 tokens


def test_beyond_the_horizon_no_future_is_looked_at() -> None:
    table = table_of(num_tokens=[0, 0], limit=[1_000_000, 64])
    reserve = RatioReserve(16, ratio=0.5, horizon=1024)
    assert reserve.blocks(table, rows(0)) == 32
    assert reserve.blocks(table, rows(0, 1)) == 34
    assert RatioReserve(1, ratio=1.0).blocks(table, rows(0)) == 4096


def test_many_long_futures_do_not_overflow() -> None:
    table = table_of(limit=[2**31 - 1] * 8)
    slots = rows(*range(8))
    assert RatioReserve(1, ratio=1.0, horizon=2**31 - 1).blocks(table, slots) == 8 * (2**31 - 1)


def test_the_ratio_falls_with_every_step_down_to_its_floor() -> None:
    reserve = RatioReserve(16)
    assert reserve.ratio == 0.7
    assert after(reserve, 1).ratio == pytest.approx(0.699)
    assert after(reserve, 299).ratio == pytest.approx(0.4)
    assert after(reserve, 300).ratio == pytest.approx(0.1)
    assert after(reserve, 1000).ratio == 0.1


def test_a_preemption_lifts_the_ratio_to_what_the_others_have_used_and_a_little() -> None:
    table = table_of(num_prompt=[100, 50], num_tokens=[180, 70], limit=[200, 150])  # 80 of 100 and 20 of 100
    reserve = after(RatioReserve(16), 1000)
    reserve.preempted(table, rows(0, 1))
    assert reserve.ratio == (80 + 20 + 2 * 20) / 200
    assert after(reserve, 100).ratio == pytest.approx(0.6)  # and falls from there
    assert after(reserve, 1000).ratio == 0.1


def test_only_those_that_go_on_teach() -> None:
    table = table_of(num_prompt=[100, 50], num_tokens=[180, 70], limit=[200, 150])
    reserve = after(RatioReserve(16), 1000)
    reserve.preempted(table, rows(1))
    assert reserve.ratio == 0.4


def test_a_preemption_never_lowers_the_ratio() -> None:
    table = table_of(num_prompt=[100], num_tokens=[101], limit=[1100])  # 2.1% used
    reserve = after(RatioReserve(16), 100)
    reserve.preempted(table, rows(0))
    assert reserve.ratio == pytest.approx(0.6)
    assert after(reserve, 100).ratio == pytest.approx(0.5)  # nor stops its fall


def test_the_ratio_is_at_most_the_whole() -> None:
    table = table_of(num_prompt=[100], num_tokens=[119], limit=[120])  # 19 and 20 more, of 20
    reserve = RatioReserve(16)
    reserve.preempted(table, rows(0))
    assert reserve.ratio == 1.0


@pytest.mark.parametrize("slots", [(), (0,)])
def test_where_no_request_is_left_to_learn_from_the_ratio_stays(slots: tuple[int, ...]) -> None:
    table = table_of(num_prompt=[10], num_tokens=[10], limit=[10])
    reserve = after(RatioReserve(16), 100)
    reserve.preempted(table, rows(*slots))
    assert reserve.ratio == pytest.approx(0.6)


# -- which -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("ratio", RatioReserve), ("blocks", BlocksReserve), ("none", NoReserve)])
def test_the_configuration_chooses(name: ReserveName, kind: type[Reserve]) -> None:
    assert type(reserve_of(SchedulerConfig(reserve=name))) is kind


def test_the_ratio_is_the_default_and_in_blocks_of_the_configured_size() -> None:
    assert reserve_of(SchedulerConfig(block_size=32)).blocks(TABLE, rows(0)) == math.ceil(160 * 0.7 / 32)
