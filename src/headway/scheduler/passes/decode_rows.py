"""The decoding rows of a step, as vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.scheduler.batch import BoolArray, IntArray, LongArray
from headway.scheduler.state.slot_table import SlotTable


@dataclass(slots=True)
class DecodeRows:
    """The rows that decode, and what of them stays the same while `SlotTable.epoch` stands still.

    rows: intp [N], ascending. tails: intp [N], where each row's part of the table's tail_tokens begins.
    slots, ones: int32 [N]; uids, generations: int64 [N]; trues: bool [N].
    stop_tokens: int32 [N, W], None when no row has any. min_total: int32 [N], total tokens before which they do not
        count.
    steps_to_limit: steps that can still be launched before some row reaches its limit.
    """

    epoch: int
    rows: NDArray[np.intp]
    tails: NDArray[np.intp]
    slots: IntArray
    ones: IntArray
    trues: BoolArray
    uids: LongArray
    generations: LongArray
    stop_tokens: IntArray | None
    min_total: IntArray
    steps_to_limit: int

    @classmethod
    def of(cls, table: SlotTable, rows: NDArray[np.intp]) -> DecodeRows:
        """These decoding rows as they stand."""
        stop_tokens = table.stop_tokens[rows]
        room = table.limit[rows] - 1 - table.num_computed[rows]
        return cls(
            epoch=table.epoch,
            rows=rows,
            tails=rows * table.tail_tokens.shape[1],
            slots=rows.astype(np.int32),
            ones=np.ones(len(rows), dtype=np.int32),
            trues=np.ones(len(rows), dtype=np.bool_),
            uids=table.uid[rows],
            generations=table.generation[rows],
            stop_tokens=stop_tokens if stop_tokens.size and stop_tokens.max() >= 0 else None,
            min_total=table.min_total[rows],
            steps_to_limit=int(room.min()) if len(rows) else 0,
        )

    @classmethod
    def none(cls, table: SlotTable) -> DecodeRows:
        """No rows."""
        return cls.of(table, np.zeros(0, dtype=np.intp))

    def __len__(self) -> int:
        return len(self.rows)

    def equals(self, other: DecodeRows) -> bool:
        """Whether these, one step after the others, are the same requests in the same slots. Slots tell it: a request
        decodes after a step with its last chunk, and in that step its slot does not decode."""
        return len(self) == len(other) and (not len(self) or bool((self.rows == other.rows).all()))

    def still_owned(self, table: SlotTable) -> BoolArray | None:
        """bool [N]: which rows still have the occupants for which this was made; None when all have."""
        if self.epoch == table.epoch:
            return None
        owned: BoolArray = table.generation[self.rows] == self.generations
        return None if np.count_nonzero(owned) == len(owned) else owned

    def stopped(self, tokens: IntArray, positions: IntArray) -> BoolArray | None:
        """bool [N]: the rows whose new token ends them; None when there are none.

        tokens, positions: int32 [N], the sampled tokens and the position each was computed from.
        """
        if self.stop_tokens is None:
            return None
        hit: BoolArray = (self.stop_tokens == tokens[:, None]).any(axis=1)
        if not np.count_nonzero(hit):
            return None
        hit &= positions + 2 >= self.min_total
        return hit
