"""A prefix is shared while it is computed: rows announce the blocks that they fill, and other rows skip these."""

from __future__ import annotations

from typing import NamedTuple

from headway.scheduler.batch import IntArray
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.slot_pool import SlotHandle
from headway.scheduler.state.state import State


class Skipped(NamedTuple):
    """Blocks, int32, that a request shares from this column of its table on, in place of its own."""

    handle: SlotHandle
    column: int
    blocks: IntArray


class Sharing:
    """The blocks that rows of the step made now announce, and what rows take of announced blocks: of steps in flight,
    and of the same step if the executor allows it. A row waits only for a row of this step, never for a later one."""

    def __init__(self, state: State, moves: Moves) -> None:
        self._state = state
        self._moves = moves
        self._announced: dict[int, int] = {}  # slot -> leading blocks that were known before
        self._skipped: list[Skipped] = []

    @property
    def newest(self) -> int:
        """The last step whose pending blocks a row of the step that is made now may read."""
        return self._state.last_step + self._state.config.reads_same_step

    def announce(self, entry: Entry, end: int) -> None:
        """The step computes the tokens of a request up to `end`: other rows need not."""
        self._announced.setdefault(entry.slot, entry.num_matched)
        self._state.announce(entry, end)

    def take_announced(self, entry: Entry) -> IntArray:
        """The blocks, int32, that the chunk of a request is to fill for all."""
        first = self._announced.pop(entry.slot)
        return self._state.table.block_tables[entry.slot, first : entry.num_matched].copy()

    def catch_up(self, entry: Entry) -> bool:
        """Let a request that prefills skip what is cached, or computed by another row, since its last chunk. False if
        it must wait for a row of this step."""
        state, table, size = self._state, self._state.table, self._state.config.block_size
        computed = int(table.num_computed[entry.slot])
        first = computed >> state.block_shift
        if not state.config.enable_prefix_caching or entry.request.spans or entry.num_matched != first:
            return True
        if entry.keeps_blocks:
            return True
        if not self.may_match_more(entry):
            return True
        max_blocks = ((len(entry.tokens) - 1) >> state.block_shift) - first
        rest = entry.tokens[first * size : (first + max_blocks) * size].tobytes()
        blocks, node = state.prefix.match(rest, max_blocks, entry.node, newest=self.newest)
        if len(blocks):
            assert entry.handle is not None
            self._skipped.append(Skipped(entry.handle, first, blocks))
            self._moves.skip(entry, blocks, node)
            num_skipped = int(table.num_computed[entry.slot]) - computed
            state.counters.catch_up(num_skipped, resumed=entry.num_preemptions > 0)
        return not self.waits(entry)

    def take_skipped(self) -> list[Skipped]:
        """The changes of block tables by `catch_up` since the last call."""
        if not self._skipped:
            return []
        skipped, self._skipped = self._skipped, []
        return [skip for skip in skipped if self._state.table.owns(*skip.handle)]

    def is_announced(self, slot: int) -> bool:
        """Whether another row of this step computes what follows the chunk of this slot."""
        return self._state.pool.num_pending > 0 and self.may_match_more(self._state.occupant(slot))

    def waits(self, entry: Entry) -> bool:
        """Whether a row of this step computes the next block of a request, and may not be read in this step. The
        request takes the block in the next step: waiting costs nothing, as the block is computed meanwhile."""
        state = self._state
        return not state.config.reads_same_step and state.pool.num_pending > 0 and self.may_match_more(entry)

    def may_match_more(self, entry: Entry) -> bool:
        """Whether the cache may have more of a request than at the last look: others have computed it meanwhile."""
        if entry.num_matched < 0:
            return True
        if not entry.request.reads_prefix_cache:
            return False
        if entry.next_key is None:
            size = self._state.config.block_size
            start = entry.num_matched * size
            more = start + size < len(entry.tokens)
            entry.next_key = entry.node + entry.tokens[start : start + size].tobytes() if more else b""
        return entry.next_key in self._state.prefix
