"""Slots: the rows of the struct of arrays in which running requests live."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headway.kvcache.lazy import lazy_zeros
from headway.request import RequestStatus

NO_TOKEN = -1


EMPTY = -1  # in the column `status`: the slot has no occupant
# Looked up once: in CPython 3.11 a member of an enum costs half a microsecond, and these are on the way of every step.
_PREFILL, _DECODE = int(RequestStatus.RUNNING_PREFILL), int(RequestStatus.RUNNING_DECODE)


class SlotTable:
    """One row per slot, one array per column. Only the writer reads or writes it.

    epoch: changes whenever a row changes hands or status, or its last step is launched; so what was derived from the
        rows can be kept while it stands still.
    status: int8 [max_num_seqs], the occupant's RequestStatus; EMPTY where there is none.
    block_tables: int32 [max_num_seqs, blocks_per_request]; the first `num_blocks` entries of a row are valid.
    limit: total tokens at which the request ends by length.
    stop_tokens: int32 [max_num_seqs, widest list so far], padded with NO_TOKEN.
    """

    def __init__(self, max_num_seqs: int, blocks_per_request: int, block_size: int) -> None:
        n = max_num_seqs
        self.capacity = n
        self.epoch = 0
        self.status = np.full(n, EMPTY, dtype=np.int8)
        self.generation = np.zeros(n, dtype=np.int64)
        self.uid = np.zeros(n, dtype=np.int64)
        self.num_prompt = np.zeros(n, dtype=np.int32)  # tokens that the caller brought; what is known beyond is output
        self.num_tokens = np.zeros(n, dtype=np.int32)  # known: prompt and confirmed output
        self.num_computed = np.zeros(n, dtype=np.int32)  # scheduled included, but for drafts
        self.limit = np.zeros(n, dtype=np.int32)
        self.min_total = np.zeros(n, dtype=np.int32)  # total tokens before which no stop token counts
        self.num_blocks = np.zeros(n, dtype=np.int32)
        self.tail_block = np.zeros(
            n, dtype=np.int32
        )  # of the next position to compute, once it is decided; without drafts
        self.tail_tokens = np.zeros((n, block_size), dtype=np.int32)  # computed ones in the block that is not full yet
        self.last_token = np.zeros(n, dtype=np.int32)
        self.num_published = np.zeros(n, dtype=np.int32)  # leading blocks that the prefix cache knows
        self.priority = np.zeros(n, dtype=np.int64)
        self.rank = np.zeros(n, dtype=np.float64)  # place in line: by rank, then by seniority
        self.seniority = np.zeros(n, dtype=np.int64)  # order of arrival; lower came first
        self.stop_tokens = np.full((n, 0), NO_TOKEN, dtype=np.int32)
        self.block_tables = lazy_zeros((n, blocks_per_request), np.int32)
        self.num_held_blocks = 0  # sum of num_blocks, kept as we go

    def blocks_of(self, slot: int) -> NDArray[np.int32]:
        """The block table of a slot, int32 [num_blocks]; a view."""
        return self.block_tables[slot, : self.num_blocks[slot]]

    def append_blocks(self, slot: int, blocks: NDArray[np.int32]) -> None:
        """Extend the block table of one slot."""
        start = int(self.num_blocks[slot])
        self.block_tables[slot, start : start + len(blocks)] = blocks
        self.num_blocks[slot] = start + len(blocks)
        self.num_held_blocks += len(blocks)

    def append_block_each(self, rows: NDArray[np.intp], columns: NDArray[np.int32], blocks: NDArray[np.int32]) -> None:
        """Extend the block tables of these rows by one block each, at their next columns; a row may come again for
        the column after that."""
        self.block_tables[rows, columns] = blocks
        self.num_blocks[rows] = columns + 1
        self.num_held_blocks += len(rows)

    def clear_blocks(self, slot: int) -> None:
        """Empty the block table of one slot. Releasing the blocks is the caller's business."""
        self.num_held_blocks -= int(self.num_blocks[slot])
        self.num_blocks[slot] = 0

    def set_stop_tokens(self, slot: int, tokens: tuple[int, ...]) -> None:
        """The tokens that end the occupant of a slot."""
        width = self.stop_tokens.shape[1]
        if not width and not tokens:
            return
        if len(tokens) > width:
            wider = np.full((self.capacity, len(tokens)), NO_TOKEN, dtype=np.int32)
            wider[:, :width] = self.stop_tokens
            self.stop_tokens = wider
        self.stop_tokens[slot] = NO_TOKEN
        self.stop_tokens[slot, : len(tokens)] = tokens

    def decoding_rows(self) -> NDArray[np.intp]:
        """The rows that compute one token in the next step, ascending, intp. Not a row whose last step is launched:
        it only waits for the result."""
        rows: NDArray[np.intp] = ((self.status == _DECODE) & (self.limit - self.num_computed > 1)).nonzero()[0]
        return rows

    def computing_rows(self) -> NDArray[np.intp]:
        """The rows that have more to compute, ascending, intp: their occupants can be preempted."""
        runs = (self.status == _DECODE) | (self.status == _PREFILL)
        rows: NDArray[np.intp] = (runs & (self.limit - self.num_computed > 1)).nonzero()[0]
        return rows

    def owns(self, slot: int, generation: int) -> bool:
        """Whether the row still belongs to the occupant of this generation."""
        return bool(self.generation[slot] == generation)
