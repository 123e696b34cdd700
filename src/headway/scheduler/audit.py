"""Which request owns which slot and block: checked a little after every step, recounted whole on demand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from headway.kvcache import OwnershipError
from headway.request import RequestStatus
from headway.scheduler.state.leases import Holder, Lease
from headway.scheduler.state.slot_table import EMPTY
from headway.scheduler.state.state import State

# Blocks and slots are looked at in turn, several together after every few steps: that way they cost a microsecond a
# step at most, and little is brought into the processor's caches that the step has no use for.
STEPS_PER_LOOK = 8
BLOCKS_PER_LOOK = 16
SLOTS_PER_LOOK = 4


@dataclass(frozen=True, slots=True)
class Owner:
    """A holder of blocks or of a slot. kind "slot": a request that has a slot. "quarantine": a former request, whose
    slot waits for the device; it has no blocks. Otherwise the holder of a lease (`leases.py`).

    uid: None for blocks of no request. seconds: how long a lease or quarantine has lasted. peer: the engine that the KV
    goes to or comes from, where the connector knows one; the core does not.
    """

    name: str
    kind: Literal["slot", "sender", "borrower", "receiver", "quarantine"]
    slot: int | None
    num_blocks: int
    uid: int | None = None
    seconds: float | None = None
    peer: str | None = None

    def __str__(self) -> str:
        if self.kind == "quarantine":
            return f"quarantine of slot {self.slot} after request {self.name!r}"
        if self.kind != "slot":
            return f"{self.kind} of request {self.name!r}"
        return f"request {self.name!r} (slot {self.slot})"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What a full recount found. problems: one line each, empty if all is in order."""

    problems: tuple[str, ...]
    num_requests: int
    num_slots_used: int
    num_blocks_referenced: int
    num_blocks_free: int
    num_blocks_evictable: int
    num_leases: int
    owners: tuple[Owner, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is lost or owned twice."""
        return not self.problems


class Auditor:
    """Compares what the pool counted with what the owners hold.

    After every step: the sums, O(1), and by turns some blocks and slots. A violation raises OwnershipError with the
    whole report: the state cannot be trusted any more, and the engine must stop.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._num_steps = 0
        self._next_block = 1
        self._next_slot = 0

    def after_step(self) -> None:
        """The sums; now and then some blocks and slots."""
        try:
            self._state.pool.check(self._state.num_held_blocks)
            self._num_steps += 1
            if self._num_steps % STEPS_PER_LOOK == 0:
                self._look()
        except OwnershipError as error:
            raise OwnershipError(f"{error}. {describe(self.report())}") from None

    def check(self) -> None:
        """Everything. Raises OwnershipError."""
        report = self.report()
        if not report.ok:
            raise OwnershipError(describe(report))

    def report(self) -> AuditReport:
        """Everything, O(slots + blocks)."""
        state, counts = self._state, self._state.pool.counts
        owners, held = self._owners()
        parts = [*held, np.zeros(0, dtype=np.int32)]
        owned = np.concatenate(parts)
        problems = [
            f"{problem.text}; held by {self._names(owners, held, problem.block)}" if problem.block else problem.text
            for problem in state.pool.problems(owned)
        ]
        return AuditReport(
            problems=tuple(problems + self._slot_problems()),
            num_requests=len(state.entries),
            num_slots_used=state.table.capacity - state.slots.num_free_slots(),
            num_blocks_referenced=counts.referenced,
            num_blocks_free=counts.free,
            num_blocks_evictable=counts.evictable,
            num_leases=len(state.leases),
            owners=tuple(owners),
        )

    def _owners(self) -> tuple[list[Owner], list[np.ndarray]]:
        """All owners of blocks, and their blocks: int32 arrays. A slot without an occupant counts if it holds any."""
        state, owners, held = self._state, [], []
        for waiting in state.slots.quarantined:
            name, seconds = self._name_of(waiting.uid), state.now - waiting.since
            owners.append(Owner(name, "quarantine", waiting.slot, 0, waiting.uid, seconds))
            held.append(state.table.blocks_of(waiting.slot))
        for slot, entry in enumerate(state.occupants):
            blocks = state.table.blocks_of(slot)
            if entry is not None or len(blocks):
                name, uid = ("(no request)", None) if entry is None else (entry.request.request_id, entry.uid)
                owners.append(Owner(name, "slot", slot, len(blocks), uid))
                held.append(blocks)
        for uid, lease in state.leases.items():
            seconds = state.now - lease.began
            owners.append(Owner(self._name_of(uid), lease.holder.value, None, len(lease.blocks), uid, seconds))
            held.append(lease.blocks)
        return owners, held

    def _name_of(self, uid: int) -> str:
        entry = self._state.entries.get(uid)
        return entry.request.request_id if entry is not None else f"uid {uid}"

    @staticmethod
    def _names(owners: list[Owner], held: list[np.ndarray], block: int) -> str:
        holders = [str(owner) for owner, blocks in zip(owners, held, strict=True) if (blocks == block).any()]
        return ", ".join(holders) or "no owner"

    def _slot_problems(self) -> list[str]:
        state, table, problems = self._state, self._state.table, []
        occupants = [entry for entry in state.occupants if entry is not None]
        free, quarantined = state.slots.num_free_slots(), state.slots.num_quarantined
        if len(occupants) + free + quarantined != table.capacity:
            taken = f"{len(occupants)} slots have an occupant, {quarantined} are in quarantine"
            problems.append(f"{taken} and {free} are free, of {table.capacity}")
        for waiting in state.slots.quarantined:
            if state.occupants[waiting.slot] is not None or table.generation[waiting.slot] != waiting.generation + 1:
                problems.append(f"slot {waiting.slot} is in quarantine, and was given to a request")
        for slot, entry in enumerate(state.occupants):
            status = int(table.status[slot])
            if status != (EMPTY if entry is None else entry.status):
                name = "EMPTY" if status == EMPTY else RequestStatus(status).name
                problems.append(f"slot {slot} has status {name}, but its occupant is {entry}")
            elif entry is not None and (entry.handle is None or not table.owns(*entry.handle) or entry.slot != slot):
                problems.append(f"slot {slot}: the handle of request {entry.request.request_id!r} is void")
        sending = state.population[RequestStatus.SENDING]
        without = len(state.waiting) + state.population[RequestStatus.PREPARING] + sending
        if len(occupants) + without != len(state.entries):
            problems.append(f"{len(occupants)} requests in slots + {without} without one are not {len(state.entries)}")
        if sum(state.population) != len(state.entries) + state.population[RequestStatus.FINISHED]:
            problems.append(f"requests by status {state.population} are not {len(state.entries)} in all")
        kept = [state.entries[uid] for uid, lease in state.leases.items() if uid in state.entries and not _left(lease)]
        if any(entry.handle is not None for entry in kept):
            problems.append("a request that has a slot has lent its blocks")
        return problems

    def _look(self) -> None:
        """The next blocks and slots in turn."""
        num_blocks, num_slots = self._state.pool.num_blocks, self._state.table.capacity
        for _ in range(BLOCKS_PER_LOOK):
            self._check_block(self._next_block)
            self._next_block = self._next_block % (num_blocks - 1) + 1
        for _ in range(SLOTS_PER_LOOK):
            self._check_slot(self._next_slot)
            self._next_slot = (self._next_slot + 1) % num_slots

    def _check_block(self, block: int) -> None:
        state = self._state
        problem = state.pool.problem_of(block)
        if problem is not None:
            raise OwnershipError(problem)
        holder = int(state.holder[block])
        if holder >= 0 and state.pool.num_references_to(block) == 1 and block not in state.table.blocks_of(holder):
            raise OwnershipError(f"block {block} is held for slot {holder}, which does not know it")

    def _check_slot(self, slot: int) -> None:
        entry, table = self._state.occupants[slot], self._state.table
        if entry is None:
            if table.num_blocks[slot]:
                raise OwnershipError(f"slot {slot} is free and holds {table.num_blocks[slot]} blocks")
        elif entry.handle is None or not table.owns(*entry.handle):
            raise OwnershipError(f"slot {slot}: the handle of request {entry.request.request_id!r} is void")


def _left(lease: Lease) -> bool:
    """Whether the request of a lease may have other blocks meanwhile."""
    return lease.holder is Holder.RECEIVER


def describe(report: AuditReport) -> str:
    """A report in one paragraph: the problems, and the owners."""
    problems = "; ".join(report.problems) or "a full recount found nothing else"
    owners = ", ".join(f"{owner}: {owner.num_blocks}" for owner in report.owners[:32])
    more = f" and {len(report.owners) - 32} more" if len(report.owners) > 32 else ""
    return (
        f"{problems}. {report.num_blocks_free} blocks free, {report.num_blocks_evictable} evictable, "
        f"{report.num_blocks_referenced} referenced; blocks by owner: {owners or 'none'}{more}"
    )
