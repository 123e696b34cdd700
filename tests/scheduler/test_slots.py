"""Slots: lowest free first, and a void handle changes nothing."""

import pytest

from headway.scheduler import NoFreeSlotError, SlotPool, SlotTable
from headway.scheduler.state.slot_table import NO_TOKEN


def manager(max_num_seqs: int = 3) -> tuple[SlotTable, SlotPool]:
    table = SlotTable(max_num_seqs, blocks_per_request=4, block_size=4)
    return table, SlotPool(table)


def test_the_lowest_free_slot_is_next() -> None:
    _, slots = manager()
    first, second = slots.acquire(), slots.acquire()
    assert (first.slot, second.slot) == (0, 1)
    slots.release(first)
    assert slots.next_free_slot() == 0
    assert slots.acquire().slot == 0


def test_num_free_slots_counts_the_free_slots() -> None:
    _, slots = manager()
    assert slots.num_free_slots() == 3
    slots.acquire()
    assert slots.num_free_slots() == 2


def test_with_no_slot_free_the_error_names_the_limit_and_nothing_changes() -> None:
    _, slots = manager(max_num_seqs=2)
    held = [slots.acquire(), slots.acquire()]
    for call in (slots.next_free_slot, slots.acquire):
        with pytest.raises(NoFreeSlotError, match=r"all 2 \(max_num_seqs\)"):
            call()
    assert slots.num_free_slots() == 0
    slots.release(held[1])
    assert slots.next_free_slot() == 1


def test_a_late_release_does_not_take_the_slot_from_its_next_owner() -> None:
    table, slots = manager()
    first = slots.acquire()
    assert slots.release(first)
    second = slots.acquire()
    assert second.slot == first.slot and second != first
    assert not slots.release(first)
    assert slots.num_free_slots() == 2 and table.owns(*second)


def test_stop_tokens_of_a_former_occupant_are_gone() -> None:
    table, _ = manager()
    table.set_stop_tokens(0, (5, 6))
    table.set_stop_tokens(1, (7, 8, 9))  # widens the column
    assert table.stop_tokens[0].tolist() == [5, 6, NO_TOKEN]
    table.set_stop_tokens(0, ())
    assert table.stop_tokens[0].tolist() == [NO_TOKEN] * 3
