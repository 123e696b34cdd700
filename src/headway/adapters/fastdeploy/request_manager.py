"""The original's four calls for slots."""

from __future__ import annotations

from headway.scheduler import SlotHandle, SlotPool


class RequestManager(SlotPool):
    """A slot pool under the original's names. Only the writer uses it, like the pool."""

    def available_batch(self) -> int:
        """The number of free slots."""
        return self.num_free_slots()

    def get_available_position(self) -> int:
        """The slot that would be acquired next. Raises NoFreeSlotError when none is free."""
        return self.next_free_slot()

    def acquire_slot(self) -> SlotHandle:
        """Take the lowest free slot. Raises NoFreeSlotError when none is free."""
        return self.acquire()

    def release_slot(self, handle: SlotHandle) -> bool:
        """Free a slot. False, and nothing changes, if the handle is void: the slot has had another owner since."""
        return self.release(handle)
