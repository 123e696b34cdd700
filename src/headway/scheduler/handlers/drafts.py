"""The result of decodes with drafts. How many tokens a row gets, which blocks these fill and which requests they end is
known from the result alone: `num_speculative_tokens` above 0 takes this way, and no other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headway.scheduler.batch import BoolArray, IntArray, LongArray, StepResult
from headway.scheduler.effects import Effects
from headway.scheduler.passes.steps import LaunchedStep
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.state import State


def miscounted(result: StepResult, num_decodes: int, num_chunks: int, num_drafts: int) -> str | None:
    """What is wrong with the number of tokens in a result of so many decodes, each with up to `num_drafts` drafts, and
    so many sampling chunks; None if nothing is."""
    counts, num_rows, num_tokens = result.counts, num_decodes + num_chunks, len(result.tokens)
    if counts is None:
        return None if num_tokens == num_rows else f"the device returned {num_tokens} tokens for {num_rows} rows"
    if len(counts) != num_rows:
        return f"the device returned {len(counts)} counts for {num_rows} rows"
    decodes, chunks = counts[:num_decodes], counts[num_decodes:]
    fewest, most = (0, 1 + num_drafts) if num_drafts else (1, 1)
    if wrong := decodes[(decodes < fewest) | (decodes > most)].tolist():
        allowed = f"with num_speculative_tokens={num_drafts} a decode gives {fewest} to {most}"
        return f"the device returned {wrong[0]} tokens for a decode; {allowed}"
    if wrong := chunks[chunks != 1].tolist():
        return f"the device returned {wrong[0]} tokens for a prefill chunk, which gives 1"
    total = int(counts.sum(dtype=np.int64))
    return None if total == num_tokens else f"the device returned {num_tokens} tokens, and counts of {total} together"


class Drafts:
    """Gives rows the tokens that a step has returned for them, and drops the tokens after an end.

    Throughout, `row` is intp [number of tokens]: the decode that a token belongs to. `nth` is the same for its place
    among the tokens of this decode, from 0 on.
    """

    def __init__(self, state: State, moves: Moves) -> None:
        self._state = state
        self._moves = moves

    def confirm(
        self, step: LaunchedStep, result: StepResult, owned: BoolArray | None, effects: Effects
    ) -> tuple[LongArray, BoolArray]:
        """Apply the result of the decodes of a step. owned: bool [num_decodes], rows whose occupant is still the same;
        None: all. Returns, for each token of a decode, its uid, and whether it was kept."""
        state, decodes, num_decodes = self._state, step.decodes, len(step.decodes)
        counts = decodes.ones if result.counts is None else result.counts[:num_decodes]
        row = np.repeat(np.arange(num_decodes), counts)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        tokens, positions = result.tokens[: len(row)], step.batch.positions[:num_decodes]
        num_known = positions[row] + nth + 2  # with this token
        limits = state.table.limit[decodes.rows][row]
        kept = num_known <= limits
        if owned is not None:
            kept &= owned[row]
        stops = self._stops(step, row, tokens, num_known) & kept
        kept &= nth <= self._first(stops, row, nth, num_decodes)[row]
        self._write(decodes.rows, positions, row[kept], nth[kept], tokens[kept])
        ending = kept & (stops | (num_known == limits))
        effects.ended += self._moves.end_each(
            [
                (state.occupant(decodes.rows[row[i]]), int(tokens[i]) if stops[i] else None)
                for i in ending.nonzero()[0].tolist()
            ]
        )
        return decodes.uids[row], kept

    @staticmethod
    def _stops(step: LaunchedStep, row: NDArray[np.intp], tokens: IntArray, num_known: IntArray) -> BoolArray:
        """bool [number of tokens]: the stop tokens that count, by `min_tokens`."""
        if step.decodes.stop_tokens is None:
            return np.zeros(len(tokens), dtype=np.bool_)
        hit: BoolArray = (step.decodes.stop_tokens[row] == tokens[:, None]).any(axis=1)
        return hit & (num_known >= step.decodes.min_total[row])

    @staticmethod
    def _first(stops: BoolArray, row: NDArray[np.intp], nth: NDArray[np.intp], num_decodes: int) -> NDArray[np.intp]:
        """intp [num_decodes]: the place of the first stop token of each row; beyond all places where there is none."""
        first = np.full(num_decodes, np.iinfo(np.intp).max)
        np.minimum.at(first, row[stops], nth[stops])
        return first

    def _write(
        self,
        slots: NDArray[np.intp],
        positions: IntArray,
        row: NDArray[np.intp],
        nth: NDArray[np.intp],
        tokens: IntArray,
    ) -> None:
        """Put the tokens whose KV the step has computed in their places: the last known one of each row, and all new
        ones but the last. Blocks that they fill are written down and published."""
        state, table = self._state, self._state.table
        if not len(row):
            return
        first, last = nth == 0, np.append(row[1:] != row[:-1], True)
        computed = np.append(tokens[:1], tokens[:-1])
        computed[first] = table.last_token[slots[row[first]]]
        places = positions[row] + nth
        offsets, columns = places & state.offset_mask, places >> state.block_shift
        in_next = columns != (positions[row] >> state.block_shift)
        for part in (~in_next, in_next):  # of the block of the position, and of the block after it
            table.tail_tokens[slots[row[part]], offsets[part]] = computed[part]
            fills = part & (offsets == state.offset_mask)
            if fills.any():
                rows = slots[row[fills]]
                state.fill(rows, table.block_tables[rows, columns[fills]])
        self._moves.confirm_accepted(slots[row[last]], places[last] + 1, tokens[last])
