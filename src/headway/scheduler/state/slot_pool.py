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


class QuarantinedSlot(NamedTuple):
    """A slot that no request may get until the device has acknowledged that its former request has left.

    generation: of the former request. uid: of the former request; it may run again in another slot.
    since: seconds, on the clock of `apply`.
    """

    slot: int
    generation: int
    uid: int
    since: float


class SlotPool:
    """Gives out slots. The lowest free slot first, so that the rows in use stay dense.

    Only the writer acquires and releases. A release by a void handle does nothing, so a late release can never take the
    slot from its next owner.
    """

    def __init__(self, table: SlotTable) -> None:
        self._table = table
        self._free = list(range(table.capacity))  # ascending, hence a heap
        self._used = bytearray(table.capacity)  # 1: taken, or in quarantine
        self._quarantined: dict[int, QuarantinedSlot] = {}
        self._untold: list[QuarantinedSlot] = []  # quarantines that the owner has not asked for yet
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
        if slot >= self.num_spanned:
            self.num_spanned = slot + 1
        return SlotHandle(slot, int(self._table.generation[slot]))

    def release(self, handle: SlotHandle) -> bool:
        """Give a slot back. False, and nothing changes, if the handle is void."""
        if not self._void(handle):
            return False
        self._give_back(handle.slot)
        return True

    # -- quarantine ----------------------------------------------------------------------------------------------

    @property
    def quarantined(self) -> list[QuarantinedSlot]:
        """The slots that wait for the device, in the order of their release."""
        return list(self._quarantined.values())

    @property
    def num_quarantined(self) -> int:
        """Slots that wait for the device."""
        return len(self._quarantined)

    def quarantine(self, handle: SlotHandle, uid: int, now: float) -> None:
        """Release the slot of this uid, but give it to no request before `acknowledge`."""
        if self._void(handle):
            waiting = QuarantinedSlot(handle.slot, handle.generation, uid, now)
            self._quarantined[handle.slot] = waiting
            self._untold.append(waiting)

    def take_quarantined(self) -> list[QuarantinedSlot]:
        """The quarantines that have begun since the last call, and last still."""
        if not self._untold:
            return []
        untold, self._untold = self._untold, []
        return [waiting for waiting in untold if self._quarantined.get(waiting.slot) is waiting]

    def acknowledge(self, slot: int, generation: int) -> None:
        """The device has done with this generation of a slot. Any other generation changes nothing."""
        waiting = self._quarantined.get(slot)
        if waiting is not None and waiting.generation == generation:
            self._end_quarantine(slot)

    def end_quarantines(self) -> None:
        """The device is gone, and all that it did."""
        for slot in list(self._quarantined):
            self._end_quarantine(slot)

    def _end_quarantine(self, slot: int) -> None:
        del self._quarantined[slot]
        self._give_back(slot)

    # -- parts of these ------------------------------------------------------------------------------------------

    def _void(self, handle: SlotHandle) -> bool:
        """From here on the slot has no owner. False if the handle was void before."""
        table, slot = self._table, handle.slot
        if not table.owns(slot, handle.generation):
            return False
        table.generation[slot] += 1
        table.epoch += 1
        return True

    def _give_back(self, slot: int) -> None:
        heapq.heappush(self._free, slot)
        self._used[slot] = 0
        if slot == self.num_spanned - 1:
            self.num_spanned = self._used.rfind(1) + 1
