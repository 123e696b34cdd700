"""Static allocation: the blocks for prompt and max_tokens are held from admission on."""

from __future__ import annotations

from headway.managers.locked import LockedManager
from headway.scheduler import Batch, StaticAllocation


class StaticManager(LockedManager):
    """The first of the family (v0): static allocation under one lock. It never preempts, and runs fewer at once."""

    allocation = StaticAllocation

    def prefill_schedule(self) -> Batch | None:
        """The same as `schedule()`: this manager knows no pass of its own for prefill instances."""
        return self.schedule()
