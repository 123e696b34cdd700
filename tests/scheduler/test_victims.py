"""Victims: never the first in line, of the others only the lowest priority; of those, the choice of the policy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.config import SchedulerConfig
from headway.scheduler.policies.victims import LastInLine, LeastWaste, candidates, victim_policy_of
from headway.scheduler.state.slot_table import SlotTable

BLOCK_SIZE = 4


def table_of(**columns: list[int] | list[float]) -> SlotTable:
    """A table whose columns begin with these values."""
    table = SlotTable(8, blocks_per_request=8, block_size=BLOCK_SIZE)
    table.seniority[:] = np.arange(8)
    for name, values in columns.items():
        getattr(table, name)[: len(values)] = values
    return table


def rows(*slots: int) -> np.ndarray:
    return np.array(slots, dtype=np.intp)


def test_the_first_in_line_is_no_candidate_while_there_is_another() -> None:
    table = table_of(seniority=[7, 3, 5])
    assert candidates(table, rows(0, 1, 2)).tolist() == [0, 2]
    assert candidates(table, rows(0, 2)).tolist() == [0]


def test_one_alone_is_a_candidate() -> None:
    assert candidates(table_of(), rows(3)).tolist() == [3]


def test_rank_counts_before_seniority_for_who_is_first() -> None:
    table = table_of(rank=[0.5, 0.25, 0.25], seniority=[1, 9, 5])
    assert candidates(table, rows(0, 1, 2)).tolist() == [0, 1]


def test_only_the_lowest_priority_of_the_others() -> None:
    table = table_of(priority=[2, 0, 2, 1], rank=[2, 0, 2, 1])
    assert candidates(table, rows(0, 1, 2, 3)).tolist() == [0, 2]
    assert candidates(table, rows(1, 3)).tolist() == [3]


def test_the_first_in_line_is_safe_even_of_the_lowest_priority() -> None:
    """It has aged; the next in priority pays."""
    table = table_of(priority=[5, 1, 0], rank=[0.0, 1.0, 2.0])
    assert candidates(table, rows(0, 1, 2)).tolist() == [1]


def test_only_the_rows_given_count() -> None:
    table = table_of(priority=[9, 0, 0, 0])
    assert candidates(table, rows(1, 2, 3)).tolist() == [2, 3]


def test_least_waste_takes_the_fewest_tokens_that_would_be_computed_again() -> None:
    table = table_of(num_computed=[10, 7, 9])
    assert LeastWaste(BLOCK_SIZE).choose(table, rows(0, 1, 2)) == 1


def test_what_the_prefix_cache_has_is_no_waste() -> None:
    table = table_of(num_computed=[30, 7, 9], num_published=[7, 0, 1])  # 2, 7 and 5 tokens to compute again
    policy = LeastWaste(BLOCK_SIZE)
    assert policy.choose(table, rows(0, 1, 2)) == 0
    assert policy.choose(table, rows(1, 2)) == 2


def test_least_waste_takes_the_last_in_line_of_equals() -> None:
    table = table_of(num_computed=[6, 6, 6, 8], rank=[1.0, 2.0, 2.0, 9.0], seniority=[9, 4, 3, 10])
    assert LeastWaste(BLOCK_SIZE).choose(table, rows(0, 1, 2, 3)) == 1


def test_last_in_line_goes_by_rank_then_by_seniority() -> None:
    table = table_of(rank=[0.0, 1.5, 1.5, 1.0], seniority=[9, 4, 6, 8])
    policy = LastInLine()
    assert policy.choose(table, rows(0, 1, 2, 3)) == 2
    assert policy.choose(table, rows(0, 1, 3)) == 1
    assert policy.choose(table, rows(0)) == 0


def test_the_configuration_chooses() -> None:
    table = table_of(num_computed=[40, 90], num_published=[0, 20], seniority=[1, 0])
    assert victim_policy_of(SchedulerConfig(block_size=BLOCK_SIZE)).choose(table, rows(0, 1)) == 1
    assert victim_policy_of(SchedulerConfig(victim="last-in-line")).choose(table, rows(0, 1)) == 0


SMALL = st.integers(0, 3)


@given(
    st.lists(st.tuples(SMALL, SMALL, st.integers(8, 30), st.integers(0, 2)), min_size=1, max_size=8),
    st.permutations(range(8)),
    st.data(),
)
def test_like_sorting_them(columns: list[tuple[int, ...]], seniority: list[int], data: st.DataObject) -> None:
    rank, priority, computed, published = (list(column) for column in zip(*columns))
    table = table_of(rank=rank, priority=priority, num_computed=computed, num_published=published, seniority=seniority)
    slots = data.draw(st.lists(st.sampled_from(range(len(columns))), min_size=1, unique=True))

    def in_line(slot: int) -> tuple[int, int]:
        return rank[slot], seniority[slot]

    others = [slot for slot in slots if slot != min(slots, key=in_line)] or slots
    expected = [slot for slot in others if priority[slot] == max(priority[other] for other in others)]
    found = candidates(table, rows(*slots))
    assert found.tolist() == expected

    def waste(slot: int) -> int:
        return computed[slot] - published[slot] * BLOCK_SIZE

    least = [slot for slot in expected if waste(slot) == min(map(waste, expected))]
    assert LeastWaste(BLOCK_SIZE).choose(table, found) == max(least, key=in_line)
    assert LastInLine().choose(table, found) == max(expected, key=in_line)


@pytest.mark.parametrize("policy", [LeastWaste(BLOCK_SIZE), LastInLine()])
def test_preempting_again_and_again_spares_the_first_in_line_to_the_end(policy: LeastWaste | LastInLine) -> None:
    table = table_of(num_computed=[1, 50, 40, 30], priority=[0, 0, 1, 1], rank=[0.0, 0.0, 1.0, 1.0])
    left = rows(0, 1, 2, 3)
    while len(left) > 1:
        victim = policy.choose(table, candidates(table, left))
        left = left[left != victim]
    assert left.tolist() == [0]
