"""Which slots are free."""

from __future__ import annotations

import heapq
from typing import NamedTuple

from headway.scheduler.state.slot_table import SlotTable


class NoFreeSlotError(RuntimeError):
    """All slots are taken."""


class SlotHandle(NamedTuple):
    """A slot as its owner knows it. Once it was released, the generation no longer fits and the handle is void."""

    slot: int
    generation: int


class SlotPool:
    """Gives out slots. The lowest free slot first, so that the rows in use stay dense.

    Only the writer acquires and releases. A release by a void handle does nothing, so a late release can never take the
    slot from its next owner.
    """

    def __init__(self, table: SlotTable) -> None:
        self._table = table
        self._free = list(range(table.capacity))  # ascending, hence a heap
        self._used = bytearray(table.capacity)  # 1: taken
        self.num_spanned = 0  # highest slot in use + 1, kept as we go

    def num_free_slots(self) -> int:
        """Free slots."""
        return len(self._free)

    def next_free_slot(self) -> int:
        """The slot that would be acquired next. Raises NoFreeSlotError when there is none."""
        if not self._free:
            raise NoFreeSlotError(f"no free slot: all {self._table.capacity} (max_num_seqs) are taken")
        return self._free[0]

    def acquire(self) -> SlotHandle:
        """Take the lowest free slot. Raises NoFreeSlotError when there is none."""
        slot = self.next_free_slot()
        heapq.heappop(self._free)
        self._table.epoch += 1
        self._used[slot] = 1
        self.num_spanned = max(self.num_spanned, slot + 1)
        return SlotHandle(slot, int(self._table.generation[slot]))

    def release(self, handle: SlotHandle) -> bool:
        """Give a slot back. False, and nothing changes, if the handle is void."""
        table, slot = self._table, handle.slot
        if not table.owns(slot, handle.generation):
            return False
        table.generation[slot] += 1
        table.epoch += 1
        heapq.heappush(self._free, slot)
        self._used[slot] = 0
        if slot == self.num_spanned - 1:
            self.num_spanned = self._used.rfind(1) + 1
        return True
