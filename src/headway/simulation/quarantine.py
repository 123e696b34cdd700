"""Which slots of a core wait for the device, as its owner is told, and what must hold then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from headway.scheduler import Batch, Effects, QuarantinedSlot
from headway.simulation.history import require


class Quarantine:
    """A ledger. slots: the quarantines of now, by slot."""

    def __init__(self, *, is_on: bool) -> None:
        self._is_on = is_on
        self.slots: dict[int, QuarantinedSlot] = {}
        self._former: dict[int, int] = {}  # by slot: the generation whose quarantine has ended last
        self._since_batch: set[tuple[int, int]] = set()  # (slot, uid) of the quarantines begun since the last batch

    def begin(self, told: Iterable[QuarantinedSlot]) -> None:
        """The core tells of slots that were given up."""
        for waiting in told:
            require(self._is_on and waiting.slot not in self.slots, "quarantine", f"{waiting} for nothing")
            newer = waiting.generation > self._former.get(waiting.slot, -1)
            require(newer, "quarantine", f"{waiting}, which was acknowledged before")
            self.slots[waiting.slot] = waiting
            self._since_batch.add((waiting.slot, waiting.uid))

    def check_ended(self, effects: Effects, seated: Mapping[int, int], *, by_step: bool) -> None:
        """Requests with a slot have ended. seated: uids by slot, as the last batch left them."""
        ended = {end.uid for end in effects.ended} if self._is_on else set()
        if by_step:
            for waiting in effects.quarantined:
                require(waiting.uid not in ended, "quarantine", f"{waiting}, though the device has ended the request")
            return
        left = {(slot, uid) for slot, uid in seated.items() if uid in ended}
        require(left <= self._since_batch, "quarantine", f"{left - self._since_batch} do not wait")

    def check_batch(self, batch: Batch, seated: Mapping[int, int]) -> None:
        """A slot that waits has no row and no newcomer, and each preempted request has left a slot that waits."""
        taken = {admission.slot for admission in batch.admissions} | set(batch.slots.tolist())
        require(not taken & self.slots.keys(), "quarantine", f"slots {taken & self.slots.keys()} are used")
        if self._is_on:
            left = {(slot, uid) for slot, uid in seated.items() if uid in batch.preempted}
            require(left <= self._since_batch, "quarantine", f"{left - self._since_batch} do not wait")
        self._since_batch.clear()

    def end(self, slot: int) -> None:
        """The device has acknowledged it."""
        self._former[slot] = self.slots.pop(slot).generation

    def end_all(self) -> None:
        """The device is lost."""
        for slot in list(self.slots):
            self.end(slot)

    def former_generation(self, slot: int) -> int:
        """The generation of a quarantine of this slot that is over."""
        return self._former.get(slot, -1)
