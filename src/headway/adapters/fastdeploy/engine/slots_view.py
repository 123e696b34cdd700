"""FastDeploy's arrays of slots, which other threads read: written by the scheduling thread alone."""

from __future__ import annotations

from typing import Any


class SlotsView:
    """tasks_list: FastDeploy's Request in each slot. stop_flags: True where a slot is free.

    A slot keeps its last request when it becomes free: a thread that has just read the flag of a slot still finds a
    request there, never None.
    """

    def __init__(self, num_slots: int) -> None:
        self.tasks_list: list[Any] = [None] * num_slots
        self.stop_flags: list[bool] = [True] * num_slots

    def seat(self, slot: int, request: Any) -> None:
        """A request has a slot."""
        request.idx = slot
        self.tasks_list[slot] = request
        self.stop_flags[slot] = False

    def free(self, slot: int, request: Any) -> None:
        """A request has left its slot. Nothing changes if another request has the slot by now."""
        if self.tasks_list[slot] is request:
            self.stop_flags[slot] = True
            request.block_tables = []

    def shows(self, request: Any) -> bool:
        """Whether a request has a slot."""
        slot = request.idx
        return slot is not None and self.tasks_list[slot] is request and not self.stop_flags[slot]

    @property
    def num_spanned(self) -> int:
        """The highest slot in use + 1."""
        return next((i + 1 for i in range(len(self.stop_flags) - 1, -1, -1) if not self.stop_flags[i]), 0)
