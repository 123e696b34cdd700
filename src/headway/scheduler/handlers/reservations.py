"""Prefill/decode disaggregation, as far as it is scheduling: slots and blocks held before there is work, and after.

    P   reserve -- start_prefill --> chunks --> first token: lend the blocks to the sender -- send_done --> end
    D   reserve -- (KV comes in) -- start_decode --> decode

A reservation that is not started in time ends by the clock. Blocks that a sender reads stay lent until `SendDone`,
also when their request has ended or its time was up. So no other request's KV is written to them meanwhile.
"""

from __future__ import annotations

from headway.config import Role
from headway.errors import QueryError
from headway.request import FinishReason, Request, RequestStatus
from headway.scheduler.answers import Reservation
from headway.scheduler.effects import Effects, Sending
from headway.scheduler.fitting import never_fits
from headway.scheduler.handlers.transfers import Transfers
from headway.scheduler.messages import (
    DropReservations,
    ReserveDecode,
    ReservePrefill,
    SendDone,
    StartDecode,
    StartPrefill,
)
from headway.scheduler.passes.admissions import Admissions
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.leases import Holder
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.state import State
from headway.scheduler.state.transitions import Event


class Reservations:
    """Slots and blocks held for the other side."""

    def __init__(self, state: State, moves: Moves, admissions: Admissions, transfers: Transfers) -> None:
        self._state = state
        self._moves = moves
        self._admissions = admissions
        self._transfers = transfers

    def reserve_prefill(self, query: ReservePrefill, now: float) -> Reservation | None:
        """P: hold a slot and blocks for the prompt. None if they are lacking. Raises QueryError."""
        self._check(query.request, Role.PREFILL)
        until = now + self._state.config.reservation_timeout
        reservation = self._reserve(query.request, len(query.request.prompt), until)
        if reservation is not None:
            self._state.entries[reservation.uid].keeps_blocks = query.shows_blocks
        return reservation

    def reserve_decode(self, query: ReserveDecode, now: float) -> Reservation | None:
        """D: hold a slot and blocks for the prompt and the first token. None if they are lacking. Raises QueryError."""
        self._check(query.request, Role.DECODE)
        reservation = self._reserve(query.request, len(query.request.prompt) + 1, now + query.timeout)
        if reservation is not None and query.shows_blocks:
            self._state.entries[reservation.uid].filled_from_outside = True
        return reservation

    def start_prefill(self, message: StartPrefill) -> None:
        """P: compute reserved requests. Their start is reported with the next result."""
        if self._state.config.role is not Role.PREFILL:
            return
        for uid in message.uids:
            entry = self._moves.heeding(uid, Event.START)
            if entry is not None:
                num_cached_tokens = int(self._state.table.num_computed[entry.slot])
                entry.sends = True
                self._admissions.note_start(entry, num_cached_tokens)
                self._admissions.start(entry, num_cached_tokens)

    def start_decode(self, message: StartDecode, effects: Effects) -> None:
        """D: the prompt's KV has come."""
        entry = self._moves.heeding(message.uid, Event.RECEIVE)
        if entry is None or entry.status is not RequestStatus.RESERVED:
            return  # on P: it is reserved, but computes its prompt itself
        if self._state.config.role is Role.DECODE:
            self._transfers.receive(entry, message.token, effects)

    def drop(self, message: DropReservations, effects: Effects) -> None:
        """Give up reservations."""
        for uid in message.uids:
            entry = self._moves.heeding(uid, Event.DROP)
            if entry is not None:
                entry.filled_from_outside = False  # so says the caller
                error = "the reservation was dropped"
                effects.ended.append(self._moves.end(entry, FinishReason.ABORT, event=Event.DROP, error=error))

    def send(self, entry: Entry, token: int, now: float, effects: Effects) -> None:
        """P: a prompt is computed and its first token known: hand the blocks to the sender."""
        outcome, request = self._state.reason_to_end(entry, token), entry.request
        assert outcome is not None, "on P the first token is the last"
        blocks = self._moves.lend(entry, outcome, now + self._state.config.send_timeout)
        effects.sending.append(Sending(request.uid, request.request_id, blocks, len(request.prompt), token))

    def send_done(self, message: SendDone, effects: Effects) -> None:
        """P: the sender is done with the blocks. They come back also when their request has ended before."""
        if self._state.leases.of(message.uid, Holder.SENDER) is None:
            return
        self._moves.end_lease(message.uid)
        entry = self._moves.heeding(message.uid, Event.SENT)
        if entry is None:
            return
        reason, error = entry.outcome, message.error
        assert reason is not None
        if error is not None:
            reason, error = FinishReason.ERROR, f"the KV was not sent: {error}"
        effects.ended.append(self._moves.end(entry, reason, event=Event.SENT, error=error))

    def _check(self, request: Request, role: Role) -> None:
        config = self._state.config
        if config.role is not role:
            raise QueryError(f"a reservation for the {role} phase was asked of an engine whose role is {config.role}")
        if request.uid in self._state.entries:
            raise QueryError(f"uid {request.uid} of request {request.request_id!r} is in use")
        if request.uid in self._state.leases:
            raise QueryError(f"the blocks of a former request of uid {request.uid} have not come back")
        reason = never_fits(config, request)
        if reason is not None:
            raise QueryError(reason)

    def _reserve(self, request: Request, num_tokens: int, until: float) -> Reservation | None:
        """Hold slot and blocks for a new request; None if they are lacking. It passes no request that waits."""
        state = self._state
        if state.paused or state.holds_admissions or len(state.waiting):
            return None
        entry = self._moves.newcomer(request)
        blocks = self._admissions.reserve(entry, num_tokens, state.table.decoding_rows(), until)
        if blocks is None:
            return None
        num_cached_tokens = int(state.table.num_computed[entry.slot])
        return Reservation(request.uid, entry.slot, blocks.copy(), num_cached_tokens, state.last_step)
