"""Prefill/decode disaggregation, as far as it is scheduling: slots and blocks held before there is work, and after.

    P   reserve -- start_prefill --> chunks --> first token: lend the blocks to the sender -- send_done --> end
    D   reserve -- (KV comes in) -- start_decode --> decode

A reservation that nobody takes up lapses by the clock. Blocks that a sender reads stay lent until it says that it is
done, also when their request has ended or its time was up: nobody else's KV can get under its hands.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from headway.config import Role
from headway.errors import QueryError
from headway.request import FinishReason, Request, RequestStatus
from headway.scheduler.effects import Answer, Effects, Reservation, Sending, TokenOutputs
from headway.scheduler.fitting import never_fits
from headway.scheduler.messages import (
    DropReservations,
    ReserveDecode,
    ReservePrefill,
    SendDone,
    StartDecode,
    StartPrefill,
)
from headway.scheduler.passes.admissions import Admissions
from headway.scheduler.passes.steps import Steps
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.slot_table import Phase
from headway.scheduler.state.state import State


class Reservations:
    """Slots and blocks held for the other side."""

    def __init__(self, state: State, admissions: Admissions, steps: Steps) -> None:
        self._state = state
        self._admissions = admissions
        self._steps = steps

    def reserve_prefill(self, message: ReservePrefill, now: float, effects: Effects) -> None:
        """P: hold a slot and blocks for the prompt."""
        self._check(message.request, Role.PREFILL)
        num_tokens = len(message.request.prompt)
        until = now + self._state.config.reservation_timeout
        effects.answers.append(Answer(message.reply, self._reserve(message.request, num_tokens, until)))

    def reserve_decode(self, message: ReserveDecode, now: float, effects: Effects) -> None:
        """D: hold a slot and blocks for the prompt and the first token."""
        self._check(message.request, Role.DECODE)
        num_tokens = len(message.request.prompt) + 1
        until = now + message.timeout
        effects.answers.append(Answer(message.reply, self._reserve(message.request, num_tokens, until)))

    def start_prefill(self, message: StartPrefill, effects: Effects) -> None:
        """P: compute reserved requests."""
        if self._state.config.role is not Role.PREFILL:
            return
        for entry in self._reserved(message.uids):
            num_cached_tokens = int(self._state.table.num_computed[entry.slot])
            entry.sends = True
            self._state.deadlines.clear(entry.uid)
            self._admissions.note_start(entry.uid, num_cached_tokens)
            self._admissions.announce(entry, num_cached_tokens)

    def start_decode(self, message: StartDecode, effects: Effects) -> None:
        """D: the prompt's KV has come, and its first output token. That token is computed as a chunk of one: so the
        device learns it like any other known token, also after a preemption."""
        state, table = self._state, self._state.table
        if state.config.role is not Role.DECODE:
            return
        for entry in self._reserved((message.uid,)):
            slot, prompt = entry.slot, entry.request.prompt
            num_cached_tokens = int(table.num_computed[slot])
            num_full, size = len(prompt) >> state.block_shift, state.config.block_size
            state.deadlines.clear(entry.uid)
            entry.tokens = np.append(prompt, np.int32(message.token))
            entry.tokens.flags.writeable = False
            table.num_tokens[slot] = len(entry.tokens)
            table.num_computed[slot] = len(prompt)
            blocks = table.block_tables[slot, :num_full]
            state.pool.tokens[blocks] = prompt[: num_full * size].reshape(-1, size)
            state.publish(entry, num_full)
            effects.started.append((entry.uid, num_cached_tokens))
            token = np.array([message.token], dtype=np.int32)
            effects.tokens.append(TokenOutputs(np.array([entry.uid], dtype=np.int64), token))
            state.counters.generation_tokens += 1
            if message.token in entry.request.stop_token_ids and len(entry.tokens) >= table.min_total[slot]:
                effects.ended.append(state.end(entry, FinishReason.STOP, stop_token=message.token))
            elif len(entry.tokens) == entry.limit:
                effects.ended.append(state.end(entry, FinishReason.LENGTH))
            else:
                self._admissions.announce(entry, len(prompt))

    def drop(self, message: DropReservations, effects: Effects) -> None:
        """Give up reservations."""
        for entry in self._reserved(message.uids):
            end = self._state.end(entry, FinishReason.ABORT, message="the reservation was dropped")
            effects.ended.append(end)

    def send(self, entry: Entry, token: int, outcome: FinishReason, now: float, effects: Effects) -> None:
        """P: a prompt is computed and its first token known: hand the blocks to the sender."""
        state = self._state
        blocks = state.lend(entry, outcome)
        state.deadlines.set(entry.uid, now + state.config.send_timeout)
        request = entry.request
        effects.sending.append(Sending(request.uid, request.request_id, blocks, len(request.prompt), token))

    def send_done(self, message: SendDone, effects: Effects) -> None:
        """P: the sender is done with the blocks."""
        state = self._state
        if message.uid not in state.leases:
            return
        state.end_lease(message.uid)
        entry = state.entries.get(message.uid)
        if entry is None:
            return  # it has ended before
        assert entry.outcome is not None
        if message.error is None:
            effects.ended.append(state.end(entry, entry.outcome))
        else:
            effects.ended.append(state.end(entry, FinishReason.ERROR, message=f"the KV was not sent: {message.error}"))

    def _check(self, request: Request, role: Role) -> None:
        config = self._state.config
        if config.role is not role:
            raise QueryError(f"a reservation for the {role} phase was asked of an engine whose role is {config.role}")
        if request.uid in self._state.entries:
            raise QueryError(f"uid {request.uid} of request {request.request_id!r} is in use")
        reason = never_fits(config, request)
        if reason is not None:
            raise QueryError(reason)

    def _reserve(self, request: Request, num_tokens: int, until: float) -> Reservation | None:
        """Hold room for a request that was not here before; None if there is none. Nobody passes those that wait."""
        state, table = self._state, self._state.table
        if state.paused or len(state.waiting):
            return None
        entry = state.accept(request, RequestStatus.RESERVED)
        blocks = self._admissions.reserve(entry, num_tokens, np.flatnonzero(table.phase == Phase.DECODE))
        if blocks is None:
            state.refuse(entry)
            return None
        state.deadlines.set(request.uid, until)
        num_cached_tokens = int(table.num_computed[entry.slot])
        return Reservation(request.uid, entry.slot, blocks.copy(), num_cached_tokens, self._steps.last_id)

    def _reserved(self, uids: tuple[int, ...]) -> Iterator[Entry]:
        for uid in uids:
            entry = self._state.entries.get(uid)
            if entry is not None and entry.status is RequestStatus.RESERVED:
                yield entry
