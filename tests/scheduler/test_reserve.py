"""Reserves: careful at the start, bolder with every step, put right by a preemption."""

from __future__ import annotations

import numpy as np
import pytest

from headway.config import ReserveName, SchedulerConfig
from headway.scheduler.policies.answer_lengths import AT_FIRST, LONGEST, AnswerLengths
from headway.scheduler.policies.reserve import BlocksReserve, NoReserve, PeakReserve, Reserve, reserve_of
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


@pytest.mark.parametrize("reserve", [NoReserve(), BlocksReserve(), PeakReserve(16)])
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
    for reserve in (BlocksReserve(), PeakReserve(16)):
        before = reserve.blocks(TABLE, rows(0, 1))
        assert {reserve.blocks(TABLE, rows(0, 1)) for _ in range(1000)} == {before}


def test_a_preemption_resets_the_blocks_each() -> None:
    reserve = after(BlocksReserve(per_request=4.0, decay=0.5), 100)
    reserve.preempted(TABLE, rows(0))
    assert reserve.blocks(TABLE, rows(0)) == 4
    assert after(reserve, 2).blocks(TABLE, rows(0)) == 3


# -- the fullest moment to come ----------------------------------------------------------------------------------------


def peak(lengths: list[int], *, share: float = 1.0, **options: float) -> PeakReserve:
    """A rule that has seen answers of these lengths, and no others."""
    reserve = PeakReserve(16, share=share, **options)
    for length in lengths * 256:
        reserve.left(length)
    return reserve


def test_a_block_is_kept_for_each_beside_its_growth() -> None:
    assert peak([80]).blocks(table_of(num_blocks=[1, 1, 1], limit=[1, 1, 1], num_tokens=[1, 1, 1]), rows(0, 1, 2)) == 3


def test_an_answer_is_expected_to_become_as_long_as_the_others() -> None:
    table = table_of(num_prompt=[16], num_tokens=[32], num_blocks=[2], limit=[1000])
    assert peak([80]).blocks(table, rows(0)) == 4 + 1  # 64 tokens more
    assert type(peak([80]).blocks(table, rows(0))) is int


def test_of_the_others_those_that_became_longer_count() -> None:
    table = table_of(num_prompt=[16, 16], num_tokens=[16, 32], num_blocks=[1, 2], limit=[1000, 1000])
    assert peak([8, 80]).blocks(table, rows(0)) == 3 + 1  # 44 tokens, their mean
    assert peak([8, 80]).blocks(table, rows(1)) == 4 + 1


def test_an_answer_longer_than_all_may_get_half_of_the_longest() -> None:
    table = table_of(num_prompt=[16], num_tokens=[16 + 96], num_blocks=[7], limit=[1000])
    assert peak([80]).blocks(table, rows(0)) == 4 + 1  # 40 tokens, and 16


def test_none_is_expected_beyond_its_limit() -> None:
    table = table_of(num_prompt=[16, 16], num_tokens=[32, 32], num_blocks=[2, 2], limit=[33, 32])
    assert peak([80]).blocks(table, rows(0)) == 1 + 1
    assert peak([80]).blocks(table, rows(1)) == 0 + 1


def test_requests_that_end_make_room_for_the_others() -> None:
    table = table_of(num_prompt=[64, 16], num_tokens=[64, 16], num_blocks=[4, 1], limit=[80, 144])
    # One takes a block more and ends, and gives back 5; the other takes 8: 4 more than both hold now.
    assert peak([1000]).blocks(table, rows(0, 1)) == 4 + 2
    together = table_of(num_prompt=[64, 16], num_tokens=[64, 16], num_blocks=[4, 1], limit=[192, 144])
    assert peak([1000]).blocks(together, rows(0, 1)) == 16 + 2


def test_many_long_futures_do_not_overflow() -> None:
    table = table_of(num_prompt=[2**31 - 2**22] * 8, num_tokens=[2**31 - 2**22] * 8, limit=[2**31 - 1] * 8)
    table.num_blocks[:] = table.num_tokens // 16
    assert peak([2**31]).blocks(table, rows(*range(8))) == 8 * (LONGEST // 16) + 8


def test_the_share_falls_with_every_step_down_to_its_floor_and_a_preemption_resets_it() -> None:
    reserve = PeakReserve(16)
    assert reserve.share == 1.0
    assert after(reserve, 100).share == pytest.approx(0.9)
    assert after(reserve, 1000).share == 0.4
    reserve.preempted(TABLE, rows(0))
    assert reserve.share == 1.0


def test_the_share_is_of_the_tokens_to_come() -> None:
    table = table_of(num_prompt=[16], num_tokens=[16], num_blocks=[1], limit=[1000])
    assert peak([160], share=0.5, floor=0.5).blocks(table, rows(0)) == 5 + 1


def test_before_any_answer_has_ended_some_lengths_are_taken_for_granted_and_soon_count_less() -> None:
    so_far = np.zeros(1, dtype=np.int32)
    lengths = AnswerLengths(window=6)
    assert lengths.to_come(so_far) == np.mean(AT_FIRST) == 240
    lengths.add(30)
    assert lengths.to_come(so_far) == (960 + 30) / 5
    for _ in range(6):
        lengths.add(30)
    assert lengths.to_come(so_far) == 30


def test_one_answer_among_many_does_not_make_the_estimate_anew() -> None:
    so_far = np.zeros(1, dtype=np.int32)
    lengths = AnswerLengths(window=16)
    for _ in range(16):
        lengths.add(30)
    assert lengths.to_come(so_far) == 30
    lengths.add(62)
    assert lengths.to_come(so_far) == 30
    lengths.add(62)
    assert lengths.to_come(so_far) == 34


def test_only_the_last_answers_are_remembered() -> None:
    lengths = AnswerLengths(window=4)
    for length in (9, 9, 9, 9, 1, 1, 1, 5):
        lengths.add(length)
    assert lengths.to_come(np.array([0, 1, 5, 50], dtype=np.int32)).tolist() == [2, 4, 5 / 2 + 16, 5 / 2 + 16]


# -- which -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("peak", PeakReserve), ("blocks", BlocksReserve), ("none", NoReserve)])
def test_the_configuration_chooses(name: ReserveName, kind: type[Reserve]) -> None:
    assert type(reserve_of(SchedulerConfig(reserve=name))) is kind


def test_the_peak_is_the_default_and_in_blocks_of_the_configured_size() -> None:
    table = table_of(num_prompt=[32], num_tokens=[32], num_blocks=[1], limit=[96])
    assert reserve_of(SchedulerConfig(block_size=32)).blocks(table, rows(0)) == 2 + 1
