"""Blocks for the next tokens of requests that decode; by preemption of other requests where blocks are short."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.scheduler.batch import IntArray
from headway.scheduler.passes.decode_rows import DecodeRows
from headway.scheduler.policies.policies import Policies
from headway.scheduler.policies.victims import candidates
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.state import State


class TableGrowth(NamedTuple):
    """New blocks for some rows: int32 [M] slots, columns, blocks. A row has several, in order of columns, if it needs
    several."""

    slots: IntArray
    columns: IntArray
    blocks: IntArray


class DecodePlaces(NamedTuple):
    """Where the decoding rows compute next: int32 [N] positions, and offsets within their blocks; new blocks."""

    positions: IntArray
    offsets: IntArray
    growth: TableGrowth


NO_GROWTH = TableGrowth(*(np.zeros(0, dtype=np.int32) for _ in range(3)))
NO_PLACES = DecodePlaces(NO_GROWTH.slots, NO_GROWTH.slots, NO_GROWTH)


class Growth:
    """Gives every decoding row a place for its next tokens. A victim is computed again from prompt and output."""

    def __init__(self, state: State, moves: Moves, policies: Policies) -> None:
        self._state = state
        self._moves = moves
        self._policies = policies
        self._rows = DecodeRows.none(state.table)

    def rows(self) -> DecodeRows:
        """The rows that decode; kept while `SlotTable.epoch` stands still."""
        table = self._state.table
        if self._rows.epoch != table.epoch:
            self._rows = DecodeRows.of(table, table.decoding_rows())
        return self._rows

    def make_room(self) -> DecodePlaces:
        """Places for all of `rows()` as they are after it."""
        state, table, pool = self._state, self._state.table, self._state.pool
        num_preemptions = state.counters.preemptions
        while True:
            rows = self.rows().rows
            positions = table.num_computed[rows]
            offsets = positions & state.offset_mask
            at_start = (offsets == 0).nonzero()[0]  # of a block, perhaps a new one
            growing, columns = self._lacking(rows, positions, at_start)
            if len(growing) <= pool.num_available:
                break
            self._preempt_one()
        if num_preemptions != state.counters.preemptions:
            self._policies.reserve.preempted(table, rows)
        growth = NO_GROWTH
        if len(growing):
            growth = TableGrowth(growing.astype(np.int32), columns, state.grow(growing, columns))
        if len(at_start):  # with drafts this is not enough, and not needed
            starting = rows[at_start]
            table.tail_block[starting] = table.block_tables[starting, positions[at_start] >> state.block_shift]
        return DecodePlaces(positions, offsets, growth)

    def _lacking(
        self, rows: NDArray[np.intp], positions: IntArray, at_start: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], IntArray]:
        """The rows that need one more block for this step, and the columns where it goes in their tables."""
        state, table = self._state, self._state.table
        if state.config.num_speculative_tokens:
            return self._lacking_for_drafts(rows, positions)
        if not len(at_start):
            return rows[:0], positions[:0]
        rows, columns = rows[at_start], positions[at_start] >> state.block_shift
        lacks = columns == table.num_blocks[rows]
        return rows[lacks], columns[lacks]

    def _lacking_for_drafts(self, rows: NDArray[np.intp], positions: IntArray) -> tuple[NDArray[np.intp], IntArray]:
        """The same, up to the place of the last draft; none is needed beyond the limit. A row that the last step has
        taken far may lack two blocks, and comes twice."""
        state, table = self._state, self._state.table
        ahead = state.config.num_speculative_tokens
        held = table.num_blocks[rows]
        needed = (np.minimum(positions + ahead, table.limit[rows] - 1) >> state.block_shift) + 1
        rounds = [(needed > held + more).nonzero()[0] for more in range(2)]
        lacking = np.concatenate(rounds)
        columns = np.concatenate([held[lacks] + np.int32(more) for more, lacks in enumerate(rounds)])
        return rows[lacking], columns

    def _preempt_one(self) -> None:
        """Preempts one running request. Never the first in line, unless it is the only one; so one request always makes
        progress. If it is the only one, reservations or leases hold the other blocks: it is not tried again until one
        more block than it had is available."""
        state, table = self._state, self._state.table
        rows = table.computing_rows()
        victim = state.occupant(self._policies.victims.choose(table, candidates(table, rows)))
        num_blocks = int(table.num_blocks[victim.slot])
        self._moves.preempt(victim)
        if len(rows) == 1:
            victim.blocks_wanted = num_blocks + 1
