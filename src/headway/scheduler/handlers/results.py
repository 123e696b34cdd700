"""What a step's result changes: tokens get their places, full blocks are published, requests end."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from headway.request import FinishReason
from headway.scheduler.audit import Auditor
from headway.scheduler.batch import BoolArray, IntArray, PromptLogprobs, StepResult
from headway.scheduler.effects import Effects, PromptOutputs, TokenOutputs
from headway.scheduler.handlers.drafts import Drafts, miscounted
from headway.scheduler.handlers.reservations import Reservations
from headway.scheduler.handlers.transfers import Transfers
from headway.scheduler.messages import DeviceLost
from headway.scheduler.passes.admissions import Admissions
from headway.scheduler.passes.steps import Chunk, LaunchedStep, Steps
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.leases import Holder
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.state import State

_NO_BLOCKS: IntArray = np.zeros(0, dtype=np.int32)


class Results:
    """Applies step results. A row whose slot has changed hands since the launch is dropped.

    It also knows the replies that wait for steps.
    """

    def __init__(
        self,
        state: State,
        moves: Moves,
        admissions: Admissions,
        steps: Steps,
        reservations: Reservations,
        transfers: Transfers,
        auditor: Auditor,
    ) -> None:
        self._state = state
        self._moves = moves
        self._admissions = admissions
        self._steps = steps
        self._reservations = reservations
        self._transfers = transfers
        self._auditor = auditor
        self._drafts = Drafts(state, moves) if state.config.num_speculative_tokens else None
        self._waiting: list[tuple[int, int]] = []  # (last step in flight when asked, reply id)

    def step_done(self, result: StepResult, now: float, effects: Effects) -> None:
        """A step has ended. Raises OwnershipError if slots or blocks are lost or owned twice."""
        step = self._steps.in_flight.pop(result.step_id, None)
        if step is None:
            return  # given up before, or told twice
        effects.started = self._admissions.take_started()
        self._apply(step, result, now, effects)
        self._auditor.after_step()
        self._answer_waiting(effects)

    def device_lost(self, message: DeviceLost, effects: Effects) -> None:
        """Requests that have computed something end with an error; requests that wait go on."""
        state = self._state
        self._steps.in_flight.clear()
        self._transfers.give_up_all()
        self._transfers.revoke_all(effects)
        occupants = [entry for entry in state.occupants if entry is not None]
        leases = [uid for uid, lease in state.leases.items() if lease.holder is Holder.SENDER]
        sending = [state.entries[uid] for uid in leases if uid in state.entries]
        ended = self._moves.end_all(occupants + sending, FinishReason.ERROR, error=message.reason, by_step=True)
        effects.ended += ended
        state.encoder.clear()
        state.prefix.clear()  # its blocks held KV that is gone
        state.slots.end_quarantines()
        self._answer_waiting(effects)

    def await_steps(self, reply: int, effects: Effects) -> None:
        """Answer when the results of all steps in flight now are in, at once if there are none."""
        self._waiting.append((self._state.last_step, reply))
        self._answer_waiting(effects)

    def _answer_waiting(self, effects: Effects) -> None:
        if not self._waiting:
            return
        oldest = min(self._steps.in_flight, default=self._state.last_step + 1)
        effects.awaited += [reply for last, reply in self._waiting if last < oldest]
        self._waiting = [waiting for waiting in self._waiting if waiting[0] >= oldest]

    def _apply(self, step: LaunchedStep, result: StepResult, now: float, effects: Effects) -> None:
        """Take a step's result in. A failed step, or one with the wrong number of tokens, ends its requests."""
        error = result.error
        if error is None:
            num_chunks = sum(chunk.samples for chunk in step.chunks)
            error = miscounted(result, len(step.decodes), num_chunks, self._state.config.num_speculative_tokens)
        if error is not None:
            self._fail(step, error, effects)
        else:
            self._confirm(step, result, now, effects)

    def _fail(self, step: LaunchedStep, error: str, effects: Effects) -> None:
        owned = step.decodes.still_owned(self._state.table)
        slots = (step.decodes.rows if owned is None else step.decodes.rows[owned]).tolist()
        slots += [chunk.handle.slot for chunk in step.chunks if chunk.is_current]
        # A newcomer without a chunk yet ends too: it is unknown whether the device has heard of it.
        slots += [handle.slot for handle in step.newcomers if self._state.table.owns(*handle)]
        entries = [self._state.occupant(slot) for slot in dict.fromkeys(slots)]
        # The order of these digests is that of the device's next work order, so it must not depend on hashes. The
        # encoder cache does not know all of them: it may have been cleared since.
        digests = dict.fromkeys(span.digest for _, span in step.batch.encode)
        relying = self._relying_on(step, digests)
        effects.ended += self._moves.end_all(entries, FinishReason.ERROR, error=error, by_step=True)
        self._state.encoder.forget_encoded(digests)
        again = [entry for entry in relying if entry.handle is not None]
        effects.ended += self._moves.end_all(
            [entry for entry in again if entry.computes_again], FinishReason.ERROR, error=error, by_step=True
        )
        for entry in again:
            if not entry.computes_again:
                entry.computes_again = True
                self._moves.preempt(entry)

    def _relying_on(self, failed: LaunchedStep, digests: Collection[bytes]) -> list[Entry]:
        """The requests that rely on what a failed step was to compute: on blocks, directly or through a later step, or
        on images in a step in flight. The blocks that all of these announced leave the prefix cache."""
        state, later = self._state, self._steps.in_flight
        lost = {chunk.handle for chunk in failed.chunks}  # whatever runs in their slots now
        if digests:
            lost |= {
                chunk.handle
                for step in later.values()
                for chunk in step.chunks
                if any(span.digest in digests for span in chunk.spans())
            }
        bad = [state.withdraw(chunk.announced, failed.batch.step_id) for chunk in failed.chunks]
        num_lost = -1
        while num_lost != len(lost):
            num_lost = len(lost)
            for step_id, step in later.items():
                bad += [state.withdraw(chunk.announced, step_id) for chunk in step.chunks if chunk.handle in lost]
            blocks = np.concatenate(bad) if bad else _NO_BLOCKS
            for entry in state.occupants if len(blocks) else ():
                if entry is not None and np.isin(state.table.blocks_of(entry.slot), blocks).any():
                    assert entry.handle is not None
                    lost.add(entry.handle)
        return [entry for entry in state.occupants if entry is not None and entry.handle in lost]

    def _settle(self, step: LaunchedStep) -> None:
        """The blocks that the step was to fill are filled, whatever became of the requests that announced them."""
        announced = [chunk.announced for chunk in step.chunks if len(chunk.announced)]
        if announced:
            self._state.settle(np.concatenate(announced), step.batch.step_id)

    def _confirm(self, step: LaunchedStep, result: StepResult, now: float, effects: Effects) -> None:
        self._settle(step)
        owned = step.decodes.still_owned(self._state.table)
        uids, tokens, logprobs = step.decodes.uids, result.tokens, result.logprobs
        num_decoded, kept = len(uids), owned  # kept: bool, for each token of the result; None: all
        if self._drafts is not None and num_decoded:
            uids, kept = self._drafts.confirm(step, result, owned, effects)
            num_decoded = len(uids)
        elif num_decoded:
            self._confirm_decodes(step, tokens[:num_decoded], owned, effects)
        if step.chunks:
            sampling = [chunk for chunk in step.chunks if chunk.samples]
            current = np.array([chunk.is_current for chunk in sampling], dtype=np.bool_)
            uids = np.concatenate((uids, np.array([chunk.entry.uid for chunk in sampling], dtype=np.int64)))
            if kept is not None or not current.all():
                kept = np.append(np.ones(num_decoded, dtype=np.bool_) if kept is None else kept, current)
            if result.prompt_logprobs is not None:
                self._report_prompts(step, result.prompt_logprobs, effects)
            self._confirm_chunks(step.chunks, tokens[num_decoded:].tolist(), now, effects)
        if kept is not None:
            uids, tokens = uids[kept], tokens[kept]
            logprobs = logprobs.keep(kept) if logprobs is not None else None
        if len(tokens):
            self._state.counters.generation_tokens += len(tokens)
            effects.tokens.append(TokenOutputs(uids, tokens, logprobs))

    def _confirm_decodes(self, step: LaunchedStep, tokens: IntArray, owned: BoolArray | None, effects: Effects) -> None:
        """Each row's last token is in its place now, and a new one follows it."""
        state, decodes = self._state, step.decodes
        rows, places, kept = decodes.rows, step.places, tokens
        filling, filled, ending = step.filling, step.filled, step.at_limit
        positions = step.batch.positions[: len(tokens)]
        stopped = decodes.stopped(tokens, positions)
        if stopped is not None:
            ending = np.union1d(ending, stopped.nonzero()[0])
        if owned is not None:
            ending, filling, filled = ending[owned[ending]], filling[owned[filling]], filled[owned[filling]]
            rows, positions, places, kept = rows[owned], positions[owned], places[owned], tokens[owned]
        self._moves.confirm_decodes(rows, positions, places, kept)
        if len(filling):
            state.fill(decodes.rows[filling], filled)
        effects.ended += self._moves.end_each(
            [
                (state.occupant(decodes.rows[i]), int(tokens[i]) if stopped is not None and stopped[i] else None)
                for i in ending.tolist()
            ]
        )

    def _report_prompts(self, step: LaunchedStep, found: PromptLogprobs, effects: Effects) -> None:
        """Report the log-probabilities of prompts, but for chunks of former owners: these compute them again."""
        chunks = [step.chunks[row - len(step.decodes)] for row in found.rows.tolist()]
        current = np.array([chunk.is_current for chunk in chunks], dtype=np.bool_)
        if not current.any():
            return
        for chunk, end in zip(chunks, (found.starts + found.counts).tolist(), strict=True):
            if chunk.is_current:
                chunk.entry.prompt_logprobs_from = end
        uids = np.array([chunk.entry.uid for chunk in chunks], dtype=np.int64)[current]
        effects.prompt_logprobs.append(PromptOutputs(uids, found.keep(current, np.arange(len(uids), dtype=np.int32))))

    def _confirm_chunks(self, chunks: tuple[Chunk, ...], first_tokens: list[int], now: float, effects: Effects) -> None:
        tokens = iter(first_tokens)
        for chunk in chunks:
            token = next(tokens) if chunk.samples else None
            if chunk.is_current:
                self._confirm_chunk(chunk, token, now, effects)

    def _confirm_chunk(self, chunk: Chunk, token: int | None, now: float, effects: Effects) -> None:
        """token: the first one after a prefill that is complete."""
        entry = chunk.entry
        self._moves.confirm_chunk(entry, chunk.start + chunk.count, token)
        for span in chunk.spans():  # all of them end within it, as no chunk cuts a span
            self._state.encoder.done(entry.uid, span.digest)
        if entry.lends:
            self._transfers.chunk_done(entry, chunk.start + chunk.count, token, now, effects)
        elif token is None:
            return
        elif entry.sends:
            self._reservations.send(entry, token, now, effects)
        elif (end := self._moves.end_by(entry, token)) is not None:
            effects.ended.append(end)
