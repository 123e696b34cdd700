"""Steps: from the decisions of a pass to a batch, and the record of the step until its result is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.request import Span
from headway.scheduler.batch import Batch, IntArray
from headway.scheduler.passes.admissions import Admissions, Newcomer
from headway.scheduler.passes.chunk_plan import spans_near
from headway.scheduler.passes.decode_rows import DecodeRows
from headway.scheduler.passes.growth import DecodePlaces, TableGrowth
from headway.scheduler.passes.sharing import Sharing
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.slot_pool import SlotHandle
from headway.scheduler.state.state import State


@dataclass(slots=True, eq=False)  # not frozen: see `Batch`
class Chunk:
    """`count` known tokens of a request, from `start`. samples: they are the last ones, a new token follows.

    announced: int32; the blocks that it fills for all requests. They are pending until the step is done, but for blocks
        that the prefix cache has from another row.
    """

    entry: Entry
    handle: SlotHandle
    start: int
    count: int
    samples: bool
    announced: IntArray

    @property
    def is_current(self) -> bool:
        """Whether the request still runs in the slot for which the chunk was made."""
        return self.entry.handle == self.handle

    def spans(self) -> Sequence[Span]:
        """The spans that it computes: whole, or, where the rest was cached, their ends."""
        return spans_near(self.entry.request.spans, self.start, self.start + self.count - 1)


class LaunchedStep(NamedTuple):
    """A step the device works on.

    places: intp [num_decodes]; where in the table's tail_tokens each decoded token goes.
    filling: intp; the decode rows whose token is the last of its block. filled: int32; these blocks.
    at_limit: intp; the decode rows whose next token is their last by length.
    newcomers: the slots of its admissions.

    With drafts the result alone says how many tokens each decode gets: places, filling, filled and at_limit are empty.
    """

    batch: Batch
    decodes: DecodeRows
    places: NDArray[np.intp]
    filling: NDArray[np.intp]
    filled: IntArray
    at_limit: NDArray[np.intp]
    chunks: tuple[Chunk, ...]
    newcomers: tuple[SlotHandle, ...]


_NO_ROWS = np.zeros(0, dtype=np.intp)
_NO_BLOCKS: IntArray = np.zeros(0, dtype=np.int32)
_UNKNOWN = (_NO_ROWS, _NO_ROWS, _NO_BLOCKS, _NO_ROWS)


class Steps:
    """Makes batches, and remembers the steps in flight."""

    def __init__(self, state: State, moves: Moves, admissions: Admissions, sharing: Sharing) -> None:
        self._state = state
        self._moves = moves
        self._admissions = admissions
        self._sharing = sharing
        self.in_flight: dict[int, LaunchedStep] = {}
        self._last_decodes = DecodeRows.none(state.table)
        self._decode_set = 0  # changes with the decodes, from one step to the next
        self._drafts = state.config.num_speculative_tokens > 0

    @property
    def awaits_drafts(self) -> bool:
        """Whether the device works on decodes with drafts. Where these requests go on is known by the result alone."""
        return self._drafts and any(len(step.decodes) for step in self.in_flight.values())

    def launch(self, decodes: DecodeRows, places: DecodePlaces, chunks: list[Chunk]) -> Batch | None:
        """The batch of these decodes and chunks; None if there are neither."""
        if not len(decodes) and not chunks:
            return None
        state = self._state
        positions, offsets, growth = places
        known_now = _UNKNOWN if self._drafts else self._compute_decodes(decodes, positions, offsets)
        if decodes is not self._last_decodes:
            self._decode_set += not decodes.equals(self._last_decodes)
            self._last_decodes = decodes
        state.last_step += 1
        newcomers = self._admissions.take_newcomers()
        batch = self._batch(decodes, positions, growth, chunks, newcomers)
        handles = tuple(newcomer.handle for newcomer in newcomers)
        self.in_flight[batch.step_id] = LaunchedStep(batch, decodes, *known_now, tuple(chunks), handles)
        return batch

    def _compute_decodes(
        self, decodes: DecodeRows, positions: IntArray, offsets: IntArray
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], IntArray, NDArray[np.intp]]:
        """Each of these rows goes on by one token, whatever its value: places, filling, filled and at_limit of the
        step."""
        rows, at_limit = decodes.rows, _NO_ROWS
        filling = (offsets == self._state.offset_mask).nonzero()[0]
        filled = self._state.table.tail_block[rows[filling]]
        self._moves.compute_decodes(rows, positions)
        if len(rows):
            decodes.steps_to_limit -= 1
            if not decodes.steps_to_limit:
                at_limit = self._moves.launched_last(rows)
        return decodes.tails + offsets, filling, filled, at_limit

    def _with_skipped(self, growth: TableGrowth, newcomers: list[Newcomer]) -> TableGrowth:
        """Add the blocks that rows share now in place of their own. The table of a newcomer has them already."""
        skipped = self._sharing.take_skipped()
        if skipped and newcomers:
            handles = {newcomer.handle for newcomer in newcomers}
            skipped = [skip for skip in skipped if skip.handle not in handles]
        if not skipped:
            return growth
        slots = [np.full(len(skip.blocks), skip.handle.slot, dtype=np.int32) for skip in skipped]
        columns = [np.arange(skip.column, skip.column + len(skip.blocks), dtype=np.int32) for skip in skipped]
        return TableGrowth(
            np.concatenate((growth.slots, *slots)),
            np.concatenate((growth.columns, *columns)),
            np.concatenate((growth.blocks, *(skip.blocks for skip in skipped))),
        )

    def _batch(
        self,
        decodes: DecodeRows,
        positions: IntArray,
        growth: TableGrowth,
        chunks: list[Chunk],
        newcomers: list[Newcomer],
    ) -> Batch:
        slots, counts, samples = decodes.slots, decodes.ones, decodes.trues
        num_tokens = len(decodes)
        if chunks:
            rows = np.array(
                [(chunk.handle.slot, chunk.start, chunk.count, chunk.samples) for chunk in chunks], np.int32
            )
            slots = np.concatenate((slots, rows[:, 0]))
            positions = np.concatenate((positions, rows[:, 1]))
            counts = np.concatenate((counts, rows[:, 2]))
            samples = np.concatenate((samples, rows[:, 3] != 0))
            num_chunk_tokens = int(rows[:, 2].sum())
            num_tokens += num_chunk_tokens
            self._state.counters.prefill_tokens += num_chunk_tokens
        growth = self._with_skipped(growth, newcomers)
        if newcomers:
            tables = [newcomer.blocks for newcomer in newcomers]
            lengths = [len(blocks) for blocks in tables]
            new_slots = np.array([newcomer.handle.slot for newcomer in newcomers], dtype=np.int32)
            columns = np.arange(max(lengths), dtype=np.int32)
            growth = TableGrowth(
                np.concatenate((growth.slots, np.repeat(new_slots, lengths))),
                np.concatenate((growth.columns, *(columns[:length] for length in lengths))),
                np.concatenate((growth.blocks, *tables)),
            )
        encode, evicted = self._state.encoder.take_changes()
        return Batch(
            step_id=self._state.last_step,
            num_decodes=len(decodes),
            num_tokens=num_tokens,
            slots=slots,
            positions=positions,
            num_new_tokens=counts,
            samples=samples,
            table_slots=growth.slots,
            table_columns=growth.columns,
            table_blocks=growth.blocks,
            admissions=tuple(newcomer.admission for newcomer in newcomers),
            encode=tuple(encode),
            encoder_evicted=tuple(evicted),
            preempted=self._state.take_preempted(),
            decode_set=self._decode_set,
        )
