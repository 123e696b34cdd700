"""Static allocation: a request gets the blocks for its prompt and `max_tokens` when it is admitted."""

from __future__ import annotations

from headway.managers.locked import LockedManager
from headway.scheduler import Batch, StaticAllocation


class StaticManager(LockedManager):
    """v0: static allocation under one lock. It never preempts, and runs fewer requests at once."""

    allocation = StaticAllocation

    def prefill_schedule(self) -> Batch | None:
        """As `schedule`: static allocation has no separate pass for a P engine."""
        return self.schedule()
