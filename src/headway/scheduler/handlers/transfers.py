"""KV that moves between two engines, as far as it is scheduling. Both sides are requests of a queue.

    P   LEND   chunks, each to be read when its step has succeeded --> first token: a lease begins --> consumed
    D   PULL   queue --> slot and blocks, a connector fills them --> it has stopped: decode, or compute the prompt here

Two rules make it safe. A connector that writes to blocks of D holds these until it says that it has stopped, whatever
becomes of the request. And D uses what it has read of P only if P says at the end that the lease was there all the
time: so P may take blocks back at any moment.
"""

from __future__ import annotations

import numpy as np

from headway.config import Role
from headway.request import FinishReason, RequestStatus
from headway.scheduler.effects import Effects, Lending, TokenOutputs
from headway.scheduler.messages import ConsumeLease, LeasesEnded, LeasesRenewed, ReceiveDone
from headway.scheduler.passes.admissions import Admissions
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.leases import Holder
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.state import State
from headway.scheduler.state.transitions import Event


class Transfers:
    """Requests that pull or lend the KV of their prompt."""

    def __init__(self, state: State, moves: Moves, admissions: Admissions) -> None:
        self._state = state
        self._moves = moves
        self._admissions = admissions

    # -- D -------------------------------------------------------------------------------------------------------

    def receive_done(self, message: ReceiveDone, effects: Effects) -> None:
        """The connector has stopped. What it was to fill is used, or computed here, or free."""
        if self._state.leases.of(message.uid, Holder.RECEIVER) is not None:
            self._moves.end_lease(message.uid)
            return
        entry = self._moves.heeding(message.uid, Event.RECEIVE)
        if entry is None or (entry.status is RequestStatus.RESERVED and not entry.filled_from_outside):
            return  # no connector knows its blocks
        if message.error is None:
            self.receive(entry, message.token, effects)
        elif entry.status is RequestStatus.RECEIVING:
            entry.pulls = False
            self._state.counters.lost_pulls += 1
            self._admissions.start(entry, int(self._state.table.num_computed[entry.slot]))
        else:
            error = f"the KV of its prompt has not come: {message.error}"
            entry.filled_from_outside = False
            effects.ended.append(self._moves.end(entry, FinishReason.ERROR, error=error))

    def receive(self, entry: Entry, token: int | None, effects: Effects) -> None:
        """The KV of the whole prompt is there. A token of P's is computed as a chunk of one: so the device learns it
        like any other known token, also after a preemption. The start is reported at once: the token comes after it.

        Without a token the last position is computed anew, and its block, if it is full, is published after that."""
        state = self._state
        if entry.status is RequestStatus.RESERVED:
            self._admissions.note_start(entry, int(state.table.num_computed[entry.slot]))
        entry.pulls = entry.filled_from_outside = False
        effects.started += self._admissions.take_started()
        num_cached_tokens = int(state.table.num_computed[entry.slot])
        self._moves.receive(entry, token)
        num_computed = int(state.table.num_computed[entry.slot])
        state.counters.received_tokens += num_computed - num_cached_tokens
        state.store(entry, num_computed)
        if token is not None:
            tokens = np.array([token], dtype=np.int32)
            effects.tokens.append(TokenOutputs(np.array([entry.uid], dtype=np.int64), tokens))
            state.counters.generation_tokens += 1
            end = self._moves.end_by(entry, token)
            if end is not None:
                effects.ended.append(end)
                return
        self._admissions.start(entry, num_computed)

    def give_up_all(self) -> None:
        """All prompts whose KV is on its way are computed here: what the cache had of them is out of date."""
        for entry in self._state.occupants:
            if entry is not None and entry.status is RequestStatus.RECEIVING:
                self._moves.give_up(entry)

    # -- P -------------------------------------------------------------------------------------------------------

    def chunk_done(self, entry: Entry, num_tokens: int, token: int | None, now: float, effects: Effects) -> None:
        """The KV of these leading tokens of a request that lends is there, and perhaps its only token. Until that,
        whole blocks alone are shown: the others may still be exchanged for blocks that another request has computed."""
        state = self._state
        num_blocks = num_tokens >> state.block_shift
        if token is None:
            num_tokens = num_blocks << state.block_shift
            if not num_blocks:
                return
        else:
            num_blocks = state.config.blocks_for(num_tokens)
        blocks = state.table.blocks_of(entry.slot)[:num_blocks].copy()
        request_id, generation = entry.request.request_id, entry.num_preemptions
        effects.lending.append(Lending(entry.uid, request_id, blocks, num_tokens, generation, token))
        if token is None:
            return
        effects.ended.append(self._moves.end_lent(entry, token, now + state.config.lend_timeout))
        most = state.config.max_lent_blocks
        while most is not None and state.leases.num_lent > most:
            uid = state.leases.oldest_unclaimed()
            if uid is None:
                return
            self.revoke(uid, effects)

    def renew(self, message: LeasesRenewed, now: float) -> None:
        """D wants these leases still. Other uids are ignored."""
        for uid in message.uids:
            if self._state.leases.of(uid, Holder.BORROWER) is not None:
                self._state.leases.claim(uid)
                self._state.deadlines.set(uid, now + self._state.config.lend_timeout)

    def end_leases(self, message: LeasesEnded) -> None:
        """D does not want these leases any more; of a prompt that is not computed yet, none begins. Other uids are
        ignored."""
        for uid in message.uids:
            entry = self._state.entries.get(uid)
            if entry is not None:
                entry.lends = False
            elif self._state.leases.of(uid, Holder.BORROWER) is not None:
                self._state.counters.leases_released += 1
                self._end_lease(uid)

    def consume(self, query: ConsumeLease) -> bool:
        """The lease ends. Whether it was there all the time."""
        lease = self._state.leases.of(query.uid, Holder.BORROWER)
        if lease is None or lease.generation != query.generation:
            return False
        self._state.counters.leases_consumed += 1
        self._end_lease(query.uid)
        return True

    def revoke(self, uid: int, effects: Effects) -> None:
        """P takes the blocks of a lease back."""
        self._state.counters.leases_revoked += 1
        self._lose(uid, effects)

    def expire(self, uid: int, effects: Effects) -> None:
        """The time of a lease is over."""
        self._state.counters.leases_expired += 1
        self._lose(uid, effects)

    def revoke_all(self, effects: Effects) -> None:
        """All leases of borrowers end, and no other begins for what D has seen: the KV is gone, or out of date."""
        effects.kv_is_void |= self._state.config.role is Role.PREFILL
        for uid, lease in self._state.leases.items():
            if lease.holder is Holder.BORROWER:
                self.revoke(uid, effects)

    def _lose(self, uid: int, effects: Effects) -> None:
        """A lease ends before D has consumed it."""
        self._end_lease(uid)
        effects.revoked.append(uid)

    def _end_lease(self, uid: int) -> None:
        self._state.deadlines.clear(uid)
        self._moves.end_lease(uid)
