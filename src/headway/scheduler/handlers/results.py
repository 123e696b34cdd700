"""What a step's result changes: tokens get their places, full blocks are published, requests end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headway.request import FinishReason
from headway.scheduler.batch import BoolArray, IntArray, StepResult
from headway.scheduler.effects import Effects, TokenOutputs
from headway.scheduler.handlers.reservations import Reservations
from headway.scheduler.passes.steps import Chunk, LaunchedStep, Steps
from headway.scheduler.state.state import State


class Results:
    """Applies step results. A row whose slot has changed hands since the launch is dropped."""

    def __init__(self, state: State, steps: Steps, reservations: Reservations) -> None:
        self._state = state
        self._steps = steps
        self._reservations = reservations

    def apply(self, step: LaunchedStep, result: StepResult, now: float, effects: Effects) -> None:
        """Take a step's result in. A failed step, or one with the wrong number of tokens, ends its requests."""
        error = result.error
        expected = len(step.decodes) + sum(chunk.samples for chunk in step.chunks)
        if error is None and len(result.tokens) != expected:
            error = f"the device returned {len(result.tokens)} tokens for {expected} rows"
        if error is not None:
            self._fail(step, error, effects)
        else:
            self._confirm(step, result, now, effects)

    def _fail(self, step: LaunchedStep, error: str, effects: Effects) -> None:
        owned = step.decodes.still_owned(self._state.table)
        slots = (step.decodes.rows if owned is None else step.decodes.rows[owned]).tolist()
        slots += [chunk.handle.slot for chunk in step.chunks if chunk.is_current]
        # A newcomer without a chunk yet goes too: nobody can say whether the device has heard of it.
        slots += [handle.slot for handle in step.newcomers if self._state.table.owns(*handle)]
        entries = [self._state.occupant(slot) for slot in dict.fromkeys(slots)]
        effects.ended += self._state.end_all(entries, FinishReason.ERROR, message=error)
        if step.batch.encode:
            self._forget_encoded({span.digest for _, span in step.batch.encode})

    def _forget_encoded(self, digests: set[bytes]) -> None:
        """What the failed step was to encode is not there. Whoever relies on it in a step that is in flight already
        starts again. The encoder cache does not know them all: it may have been cleared since."""
        self._state.encoder.forget_encoded(digests)
        for step in self._steps.in_flight.values():
            for chunk in step.chunks:
                if chunk.is_current and any(span.digest in digests for span in chunk.spans()):
                    self._state.preempt(chunk.entry)

    def _confirm(self, step: LaunchedStep, result: StepResult, now: float, effects: Effects) -> None:
        num_decodes = len(step.decodes)
        owned = step.decodes.still_owned(self._state.table)
        uids, tokens, logprobs = step.decodes.uids, result.tokens, result.logprobs
        if num_decodes:
            self._confirm_decodes(step, tokens[:num_decodes], owned, effects)
        if step.chunks:
            sampling = [chunk for chunk in step.chunks if chunk.samples]
            current = np.array([chunk.is_current for chunk in sampling], dtype=np.bool_)
            uids = np.append(uids, np.array([chunk.entry.request.uid for chunk in sampling], dtype=np.int64))
            if owned is not None or not current.all():
                owned = np.append(np.ones(num_decodes, dtype=np.bool_) if owned is None else owned, current)
            self._confirm_chunks(step.chunks, tokens[num_decodes:].tolist(), now, effects)
        if owned is not None:
            uids, tokens = uids[owned], tokens[owned]
            logprobs = logprobs.keep(owned) if logprobs is not None else None
        if len(tokens):
            self._state.counters.generation_tokens += len(tokens)
            effects.tokens.append(TokenOutputs(uids, tokens, logprobs))

    def _confirm_decodes(self, step: LaunchedStep, tokens: IntArray, owned: BoolArray | None, effects: Effects) -> None:
        """Each row's last token is in its place now, and a new one follows it."""
        state, table, decodes = self._state, self._state.table, step.decodes
        rows, places, kept = decodes.rows, step.places, tokens
        filling, filled, ending = step.filling, step.filled, step.at_limit
        positions = step.batch.positions[: len(tokens)]
        stopped = decodes.stopped(tokens, positions)
        if stopped is not None:
            ending = np.union1d(ending, stopped.nonzero()[0])
        if owned is not None:
            ending, filling, filled = ending[owned[ending]], filling[owned[filling]], filled[owned[filling]]
            rows, positions, places, kept = rows[owned], positions[owned], places[owned], tokens[owned]
        table.tail_tokens.reshape(-1)[places] = table.last_token[rows]
        table.last_token[rows] = kept
        table.num_tokens[rows] = positions + 2
        if len(filling):
            self._fill_blocks(decodes.rows[filling], filled)
        effects.ended += state.end_each(
            [
                (state.occupant(decodes.rows[i]), int(tokens[i]) if stopped is not None and stopped[i] else None)
                for i in ending.tolist()
            ]
        )

    def _fill_blocks(self, rows: NDArray[np.intp], blocks: IntArray) -> None:
        """The tail of each of these rows is a full block now: write down its tokens and publish it."""
        state = self._state
        contents = state.table.tail_tokens[rows]
        state.pool.tokens[blocks] = contents
        if state.config.enable_prefix_caching and state.config.enable_output_caching:
            state.table.num_published[rows] += 1
            entries = [state.occupant(row) for row in rows.tolist()]
            nodes = [entry.node for entry in entries]
            nodes = state.prefix.publish_each(nodes, contents.tobytes(), blocks.tolist())
            for entry, node in zip(entries, nodes, strict=True):
                entry.node = node

    def _confirm_chunks(self, chunks: tuple[Chunk, ...], first_tokens: list[int], now: float, effects: Effects) -> None:
        tokens = iter(first_tokens)
        for chunk in chunks:
            token = next(tokens) if chunk.samples else None
            if chunk.is_current:
                self._store(chunk)
                if token is not None:
                    self._first_token(chunk, token, now, effects)

    def _store(self, chunk: Chunk) -> None:
        """The chunk's KV is in place: write down the tokens of the blocks it completed, and publish them."""
        state, entry, size = self._state, chunk.entry, self._state.config.block_size
        first, end = chunk.start >> state.block_shift, (chunk.start + chunk.count) >> state.block_shift
        blocks = state.table.block_tables[chunk.handle.slot, first:end]
        state.pool.tokens[blocks] = entry.tokens[first * size : end * size].reshape(-1, size)
        if not state.config.enable_output_caching:
            end = min(end, len(entry.request.prompt) >> state.block_shift)
        state.publish(entry, end)
        for span in chunk.spans():  # all of them end within it, as no chunk cuts a span
            state.encoder.done(entry.uid, span.digest)

    def _first_token(self, chunk: Chunk, token: int, now: float, effects: Effects) -> None:
        """The token that follows a completed prefill."""
        state, table, entry, slot = self._state, self._state.table, chunk.entry, chunk.handle.slot
        num_tokens = chunk.start + chunk.count + 1
        table.last_token[slot] = token
        table.num_tokens[slot] = num_tokens
        stops = token in entry.request.stop_token_ids and num_tokens >= table.min_total[slot]
        if entry.sends:
            self._reservations.send(entry, token, FinishReason.STOP if stops else FinishReason.LENGTH, now, effects)
        elif stops:
            effects.ended.append(state.end(entry, FinishReason.STOP, stop_token=token))
        elif num_tokens == entry.limit:
            effects.ended.append(state.end(entry, FinishReason.LENGTH))
