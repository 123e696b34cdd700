"""Slot and blocks for a request of higher priority, taken from running requests of lower priority."""

from __future__ import annotations

import numpy as np

from headway.scheduler.passes.admissions import Admissions
from headway.scheduler.passes.chunk_plan import ChunkPlan
from headway.scheduler.policies.policies import Policies
from headway.scheduler.policies.victims import displaceable
from headway.scheduler.state.encoder_cache import EncoderCache
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.state import State


class Displacement:
    """Preempts running requests of lower priority if that admits the first in line, and only then."""

    def __init__(self, state: State, moves: Moves, admissions: Admissions, policies: Policies) -> None:
        self._state = state
        self._moves = moves
        self._admissions = admissions
        self._policies = policies

    def make_room(self) -> None:
        """For the head of the queue: a slot and blocks, if running requests of lower priority hold enough of them."""
        state = self._state
        head = state.waiting.head()
        if head is None or not state.priorities or max(state.priorities) <= head.request.priority:
            return
        for slot in self._enough(head):
            self._moves.preempt(state.occupant(slot))

    def _enough(self, head: Entry) -> list[int]:
        """Slots of the victims that suffice; empty if all of them would not suffice, or none is needed."""
        state, table, pool = self._state, self._state.table, self._state.pool
        rows = table.computing_rows()
        lower = rows[displaceable(table, rows, head)]
        demand = self._admissions.demand_of(head, len(head.tokens))
        headroom = self._admissions.headroom(table.decoding_rows()).left_by(head)
        missing = self._admissions.blocks_wanted(demand) + headroom - pool.num_available
        needs_slot = not state.slots.num_free_slots()
        if needs_slot and state.slots.num_quarantined:
            return []  # a slot is on its way: to displace one more request would not bring it sooner
        victims: list[int] = []
        while missing > 0 or (needs_slot and not victims):
            if not len(lower):
                return []
            worst = lower[table.priority[lower] == table.priority[lower].max()]
            victim = self._policies.victims.choose(table, worst)
            victims.append(victim)
            # Blocks that head and victim share are idle once the victim is gone: the head shares them, takes them not.
            missing -= pool.num_exclusive(np.setdiff1d(table.blocks_of(victim), demand.cached))
            lower = lower[lower != victim]
        return victims if victims and self._can_begin(head, victims) else []

    def _can_begin(self, head: Entry, victims: list[int]) -> bool:
        """Whether the step has a chunk for the head once the victims are gone. Else a victim would be admitted again in
        place of the head, and displaced again in the next step. Media are assumed to fit."""
        state, config, table = self._state, self._state.config, self._state.table
        num_decodes = len(np.setdiff1d(table.decoding_rows(), victims))
        budget = config.max_num_batched_tokens - num_decodes * config.tokens_per_decode
        plan = ChunkPlan(config, EncoderCache(config.encoder_budget), budget)
        for entry in state.prefilling:
            if entry.slot not in victims:
                plan.offer(entry.request, entry.slot, int(table.num_computed[entry.slot]), len(entry.tokens))
        return self._admissions.can_begin(head, plan)
