"""Room for a request of higher priority than some that run."""

from __future__ import annotations

import numpy as np

from headway.scheduler.passes.admissions import Admissions
from headway.scheduler.passes.chunk_plan import ChunkPlan
from headway.scheduler.policies.policies import Policies
from headway.scheduler.policies.victims import displaceable
from headway.scheduler.state.encoder_cache import EncoderCache
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.slot_table import Phase
from headway.scheduler.state.state import State


class Displacement:
    """Preempts running requests of lower priority when that lets in the first in line, and only then."""

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
        state, table, pool = self._state, self._state.table, self._state.pool
        rows = state.computing_slots()
        behind = displaceable(table, rows, head)
        lower, decoding = rows[behind], rows[table.phase[rows] == Phase.DECODE]
        room = self._admissions.room_for(head, len(head.tokens))
        kept = self._admissions.kept(decoding).from_(head)
        missing = self._admissions.wanted(room) + kept - pool.num_available
        needs_slot = not state.slots.num_free_slots()
        victims: list[int] = []
        while missing > 0 or (needs_slot and not victims):
            if not len(lower):
                return []
            worst = lower[table.priority[lower] == table.priority[lower].max()]
            victim = self._policies.victims.choose(table, worst)
            victims.append(victim)
            # What head and victim share is idle when it has gone: not to be taken by others, nor by the head.
            missing -= pool.num_exclusive(np.setdiff1d(table.blocks_of(victim), room.cached))
            lower = lower[lower != victim]
        return victims if victims and self._can_begin(head, victims) else []

    def _can_begin(self, head: Entry, victims: list[int]) -> bool:
        """Whether the step has a chunk for the head when these have gone; else one of them would be let in again in its
        place, to go again in the next step. Of media it is only assumed that they fit."""
        state, config, table = self._state, self._state.config, self._state.table
        decoding = (table.phase == Phase.DECODE).sum() - (table.phase[victims] == Phase.DECODE).sum()
        budget = config.max_num_batched_tokens - int(decoding) * config.tokens_per_decode
        plan = ChunkPlan(config, EncoderCache(config.encoder_budget), budget)
        for entry in state.prefilling:
            if entry.slot not in victims:
                plan.offer(entry.request, entry.slot, int(table.num_computed[entry.slot]), len(entry.tokens))
        return self._admissions.can_begin(head, plan)
