"""Room for a request of higher priority than some that run."""

from __future__ import annotations

from headway.scheduler.admission import Admissions
from headway.scheduler.entry import Entry
from headway.scheduler.policies import Policies
from headway.scheduler.slots import Phase
from headway.scheduler.state import State


class Displacement:
    """Preempts running requests of lower priority when that lets in the first in line, and only then.

    A victim has a lower priority and stands behind in line (with ageing that is not the same): so it can neither
    displace in return nor be let in again before the one that displaced it, and no two requests go on evicting each
    other.
    """

    def __init__(self, state: State, admissions: Admissions, policies: Policies) -> None:
        self._state = state
        self._admissions = admissions
        self._policies = policies

    def make_room(self) -> None:
        """For the head of the queue: a slot and blocks, if running requests of lower priority hold enough of them."""
        state = self._state
        head = state.waiting.head()
        if head is None or not state.priorities or max(state.priorities) <= head.request.priority:
            return
        for slot in self._enough(head):
            state.preempt(state.occupant(slot))

    def _enough(self, head: Entry) -> list[int]:
        """The victims whose slots and blocks suffice; nobody, if all of them would not, or none is needed."""
        state, table = self._state, self._state.table
        rows = state.computing_slots()
        behind = (table.priority[rows] > head.request.priority) & (table.rank[rows] > head.place_in_line[0])
        lower = rows[behind]
        decoding = rows[table.phase[rows] == Phase.DECODE]
        needs_slot = not state.slots.available_batch()
        missing = self._admissions.lacking(head, decoding)
        victims: list[int] = []
        while (missing > 0 or (needs_slot and not victims)) and len(lower):
            worst = lower[table.priority[lower] == table.priority[lower].max()]
            victim = self._policies.victims.choose(table, worst)
            victims.append(victim)
            missing -= state.pool.num_exclusive(table.blocks_of(victim))
            lower = lower[lower != victim]
        if missing > 0 or (needs_slot and not victims):
            return []
        return victims
