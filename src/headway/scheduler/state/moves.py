"""The one place where a request's status, its known tokens and its computed tokens change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from headway.kvcache import media_keys
from headway.kvcache.node import Node
from headway.request import FinishReason, Request, RequestStatus, Transfer
from headway.scheduler.batch import IntArray
from headway.scheduler.effects import RequestEnd
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.leases import Holder, Lease
from headway.scheduler.state.slot_table import EMPTY
from headway.scheduler.state.state import State
from headway.scheduler.state.transitions import Event, applies, state_after

# Looked up once: in CPython 3.11 a member of an enum costs half a microsecond, and every request comes by here.
_NEW = RequestStatus.NEW
_QUEUED = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
_RUNNING = (RequestStatus.RUNNING_PREFILL, RequestStatus.RUNNING_DECODE)
_PREFILLING = RequestStatus.RUNNING_PREFILL
_DECODING = RequestStatus.RUNNING_DECODE
_ADD, _ADMIT, _CHUNK, _LAST_CHUNK = Event.ADD, Event.ADMIT, Event.CHUNK, Event.LAST_CHUNK
_RESULT, _END = Event.RESULT, Event.END
_STOP, _LENGTH = FinishReason.STOP, FinishReason.LENGTH
_PULL, _LEND = Transfer.PULL, Transfer.LEND
_NO_BLOCKS: IntArray = np.zeros(0, dtype=np.int32)


class Moves:
    """Carries out the events of `transitions.TABLE`, one method each. A method asks the table before it writes.

    The rows of a step's decodes are written as vectors, without a look at the table: only rows that decode get into a
    step, and a row whose slot was given up since is left out.

    rank: a request's place in line. left: is told the output tokens of each request that decoded and has ended.
    """

    def __init__(self, state: State, rank: Callable[[Request], float], left: Callable[[int], None]) -> None:
        self._state = state
        self._rank = rank
        self._left = left

    def heeding(self, uid: int, event: Event) -> Entry | None:
        """The request with this uid, if the event changes it; None if the event is ignored: the request is unknown, or
        in a state that ignores it. Raises InvalidTransition."""
        entry = self._state.entries.get(uid)
        if entry is None or not applies(event, entry.status, entry.request.request_id):
            return None
        return entry

    # -- a request comes -----------------------------------------------------------------------------------------

    def newcomer(self, request: Request) -> Entry:
        """The record of a request that comes now. It counts from `add`, `add_unprepared` or `reserve` on."""
        entry = Entry(  # by place: CPython takes twice as long with as many keywords
            request,
            (self._rank(request), self._state.counters.requests_added + 1),
            self._limit(request),
            request.prompt,
            self._state.prefix.root(request.cache_salt),
            self._media_keys(request),
            _NEW,
        )
        if request.transfer is not None:
            entry.pulls, entry.lends = request.transfer is _PULL, request.transfer is _LEND
        return entry

    def add(self, entry: Entry) -> None:
        """ADD: it waits."""
        status = self._after(_ADD, entry)
        self._accept(entry)
        self._set_status(entry, status)
        self._state.waiting.push(entry)

    def add_unprepared(self, entry: Entry, until: float) -> None:
        """ADD_UNPREPARED: it is prepared first. until: seconds, its deadline for that."""
        status = self._after(Event.ADD_UNPREPARED, entry)
        self._accept(entry)
        self._state.deadlines.set(entry.uid, until)
        self._set_status(entry, status)

    def reserve(self, entry: Entry, blocks: IntArray, num_cached_tokens: int, until: float) -> None:
        """RESERVE: it holds a slot and these blocks, whose leading ones hold KV already. until: seconds, its deadline
        to be started."""
        status = self._after(Event.RESERVE, entry)
        self._accept(entry)
        self._state.deadlines.set(entry.uid, until)
        self._give_slot(entry, blocks, num_cached_tokens, status)

    def prepared(self, entry: Entry, request: Request) -> None:
        """PREPARED: what a job made of it. It takes the place in the queue that its arrival gave it."""
        status = self._after(Event.PREPARED, entry)
        self._state.deadlines.clear(entry.uid)
        entry.request, entry.tokens, entry.limit = request, request.prompt, self._limit(request)
        entry.media_keys = self._media_keys(request)
        self._set_status(entry, status)
        self._state.waiting.push(entry)

    # -- it computes ---------------------------------------------------------------------------------------------

    def admit(self, entry: Entry, blocks: IntArray, num_cached_tokens: int) -> None:
        """ADMIT: from the queue into a slot, with these blocks, whose leading ones hold KV already."""
        status = self._after(_ADMIT, entry)
        self._state.waiting.take(entry)
        self._give_slot(entry, blocks, num_cached_tokens, status)
        self._state.prefilling.append(entry)

    def pull(self, entry: Entry, blocks: IntArray, num_cached_tokens: int, until: float) -> None:
        """PULL: from the queue into a slot, with these blocks, whose leading ones hold KV already; the KV of the others
        comes from P. until: seconds, its deadline for that."""
        status = self._after(Event.PULL, entry)
        self._state.waiting.take(entry)
        self._state.deadlines.set(entry.uid, until)
        self._give_slot(entry, blocks, num_cached_tokens, status)

    def receive(self, entry: Entry, token: int | None) -> None:
        """RECEIVE: the KV of the whole prompt is in its blocks, and this token follows; None: that of the last token of
        the prompt is computed anew."""
        self._set_status(entry, self._after(Event.RECEIVE, entry))
        table, slot, prompt = self._state.table, entry.slot, entry.request.prompt
        if token is None:
            table.num_computed[slot] = len(prompt) - 1
            return
        entry.tokens = np.append(prompt, np.int32(token))
        entry.tokens.flags.writeable = False
        table.num_tokens[slot] = len(entry.tokens)
        table.num_computed[slot] = len(prompt)

    def start(self, entry: Entry) -> None:
        """START: a request with slot and blocks is computed from here on."""
        status = self._after(Event.START, entry)
        entry.filled_from_outside = False
        self._state.deadlines.clear(entry.uid)
        self._set_status(entry, status)
        self._state.prefilling.append(entry)

    def compute_chunk(self, entry: Entry, end: int) -> bool:
        """CHUNK or LAST_CHUNK: the step now made computes its known tokens up to `end`. True if these are all."""
        state, table, known = self._state, self._state.table, len(entry.tokens)
        is_last = end == known
        status = self._after(_LAST_CHUNK if is_last else _CHUNK, entry)
        slot = entry.slot
        table.num_computed[slot] = end
        if is_last:
            state.prefilling.remove(entry)
            self._set_status(entry, status)
            if in_tail := known & state.offset_mask:
                table.tail_block[slot] = table.block_tables[slot, known >> state.block_shift]
                table.tail_tokens[slot, :in_tail] = entry.tokens[known - in_tail :]
        return is_last

    def skip(self, entry: Entry, blocks: IntArray, node: Node) -> None:
        """The next tokens of a request that prefills are cached or computed by another row: share these blocks, int32,
        in place of its own. node: at their end."""
        state, table, slot, first = self._state, self._state.table, entry.slot, entry.num_matched
        own = table.block_tables[slot, first : first + len(blocks)].copy()
        state.pool.share(blocks)
        table.block_tables[slot, first : first + len(blocks)] = blocks
        state.holder[blocks] = -1
        state.pool.release(own)
        entry.node, entry.num_matched, entry.next_key = node, first + len(blocks), None
        table.num_computed[slot] = entry.num_matched * state.config.block_size

    def compute_decodes(self, rows: NDArray[np.intp], positions: IntArray) -> None:
        """The step now made computes one token of each of these rows, at these positions."""
        self._state.table.num_computed[rows] = positions + 1

    def launched_last(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Which of these rows have their last step launched: indices into `rows`. There is at least one; so the rows
        that decode are no longer what they were."""
        table = self._state.table
        table.epoch += 1
        last: NDArray[np.intp] = (table.num_computed[rows] == table.limit[rows] - 1).nonzero()[0]
        return last

    def confirm_decodes(
        self, rows: NDArray[np.intp], positions: IntArray, places: NDArray[np.intp], tokens: IntArray
    ) -> None:
        """A step's decodes have succeeded: the last token of each row is in its place, and a new one follows it."""
        table = self._state.table
        table.tail_tokens.reshape(-1)[places] = table.last_token[rows]
        table.last_token[rows] = tokens
        table.num_tokens[rows] = positions + 2

    def confirm_accepted(self, rows: NDArray[np.intp], num_computed: IntArray, tokens: IntArray) -> None:
        """A step's decodes with drafts have succeeded: the KV of so many tokens of each row is there, and a new token
        follows it."""
        table = self._state.table
        table.last_token[rows] = tokens
        table.num_computed[rows] = num_computed
        table.num_tokens[rows] = num_computed + 1

    def confirm_chunk(self, entry: Entry, end: int, token: int | None) -> None:
        """RESULT: the KV of its known tokens up to `end` is there. token: the next token, or None."""
        self._after(_RESULT, entry)
        state, table, slot = self._state, self._state.table, entry.slot
        entry.computes_again = False
        table.num_published[slot] = max(table.num_published[slot], min(end >> state.block_shift, entry.num_matched))
        if token is not None:
            table.last_token[slot] = token
            table.num_tokens[slot] = end + 1

    # -- it goes -------------------------------------------------------------------------------------------------

    def preempt(self, entry: Entry) -> None:
        """PREEMPT: it gives up slot and blocks and goes back to its place in the queue."""
        status, state = self._after(Event.PREEMPT, entry), self._state
        entry.tokens = state.known_tokens(entry)
        # Decodes count only in the table, chunks in flight only in the entry; the node is at the end of both.
        entry.num_matched, entry.next_key = max(entry.num_matched, int(state.table.num_published[entry.slot])), None
        state.pool.release(self._vacate(entry))
        self._set_status(entry, status)
        entry.num_preemptions += 1
        state.counters.preemptions += 1
        state.preempted.append(entry.uid)
        state.waiting.push(entry)

    def lend(self, entry: Entry, outcome: FinishReason, until: float) -> IntArray:
        """LEND: all is computed. The slot is free; the blocks, int32, are a sender's until `end_lease`.

        outcome: how it will end once they are sent. until: seconds, the deadline for that.
        """
        status, state = self._after(Event.LEND, entry), self._state
        blocks = state.table.blocks_of(entry.slot).copy()
        entry.tokens = state.known_tokens(entry)
        self._vacate(entry, by_step=True)
        self._lease(entry.uid, Lease(Holder.SENDER, blocks))
        entry.outcome = outcome
        self._set_status(entry, status)
        state.deadlines.set(entry.uid, until)
        return blocks

    def end_lease(self, uid: int) -> None:
        """The holder of this uid's lease does not touch the blocks any more, or not to any effect."""
        self._state.pool.release(self._state.leases.end(uid))

    def give_up(self, entry: Entry) -> None:
        """GIVE_UP: its KV does not come. It goes back to its place in the queue, to be computed here. Its blocks stay
        with the connector, if that may write to them still."""
        status, state = self._after(Event.GIVE_UP, entry), self._state
        state.deadlines.clear(entry.uid)
        state.counters.lost_pulls += 1
        entry.pulls = False
        entry.num_matched, entry.next_key = -1, None
        state.pool.release(self._kept_from_outside(entry, self._vacate(entry)))
        self._set_status(entry, status)
        state.waiting.push(entry)

    def end_lent(self, entry: Entry, token: int, until: float) -> RequestEnd:
        """END: its only token is there. Its blocks are lent to D. until: seconds, the end of the lease."""
        state = self._state
        reason = state.reason_to_end(entry, token)
        assert reason is not None, "the first token of a request that lends is its last"
        generation, blocks = entry.num_preemptions, self._take_out(entry, self._after(_END, entry), by_step=True)
        self._lease(entry.uid, Lease(Holder.BORROWER, blocks.copy(), generation))
        state.deadlines.set(entry.uid, until)
        stop_token = token if reason is _STOP else None
        return RequestEnd(entry.uid, entry.request.request_id, reason, stop_token)

    def end(
        self,
        entry: Entry,
        reason: FinishReason,
        *,
        event: Event = _END,
        stop_token: int | None = None,
        error: str | None = None,
        by_step: bool = False,
        refused: bool = False,
    ) -> RequestEnd:
        """END, SENT, DROP or EXPIRE: it ends. by_step: by the result of a step. refused: see `RequestEnd`."""
        self._state.pool.release(self._take_out(entry, self._after(event, entry), by_step))
        return RequestEnd(entry.uid, entry.request.request_id, reason, stop_token, error, refused=refused)

    def end_by(self, entry: Entry, token: int) -> RequestEnd | None:
        """END, if this token, the last of its known tokens, is its last at all; else None, and it goes on."""
        reason = self._state.reason_to_end(entry, token)
        if reason is None:
            return None
        return self.end(entry, reason, stop_token=token if reason is _STOP else None, by_step=True)

    def end_each(self, ends: Sequence[tuple[Entry, int | None]]) -> list[RequestEnd]:
        """END, by a stop token each, or, where there is None, by length. Their blocks go back together."""
        self._take_out_all([entry for entry, _ in ends], by_step=True)
        return [
            RequestEnd(entry.uid, entry.request.request_id, _LENGTH if token is None else _STOP, token)
            for entry, token in ends
        ]

    def end_all(
        self, entries: Iterable[Entry], reason: FinishReason, *, error: str | None = None, by_step: bool = False
    ) -> list[RequestEnd]:
        """END of several requests, for the same reason. Their blocks go back together. by_step: as for `end`."""
        entries = list(entries)
        self._take_out_all(entries, by_step)
        return [RequestEnd(entry.uid, entry.request.request_id, reason, None, error) for entry in entries]

    # -- parts of these ------------------------------------------------------------------------------------------

    @staticmethod
    def _after(event: Event, entry: Entry) -> RequestStatus:
        return state_after(event, entry.status, entry.request.request_id)

    def _limit(self, request: Request) -> int:
        only_prefill = self._state.only_prefills or request.transfer is _LEND
        return len(request.prompt) + (1 if only_prefill else request.max_tokens)

    def _media_keys(self, request: Request) -> dict[int, bytes]:
        if not request.spans:
            return {}
        size = self._state.config.block_size
        return media_keys([(span.start, span.length, span.digest) for span in request.spans], size)

    def _accept(self, entry: Entry) -> None:
        state = self._state
        state.counters.requests_added += 1
        state.population[_NEW] += 1
        state.entries[entry.uid] = entry

    def _set_status(self, entry: Entry, status: RequestStatus) -> None:
        state = self._state
        state.population[entry.status] -= 1
        state.population[status] += 1
        entry.status = status
        if entry.handle is not None:
            state.table.status[entry.handle.slot] = int(status)  # in an enum numpy can swallow an interrupt
            state.table.epoch += 1

    def _give_slot(self, entry: Entry, blocks: IntArray, num_cached_tokens: int, status: RequestStatus) -> None:
        request, state, table = entry.request, self._state, self._state.table
        entry.handle = handle = state.slots.acquire()
        slot, num_cached_blocks = handle.slot, num_cached_tokens >> state.block_shift
        state.occupants[slot] = entry
        table.uid[slot] = request.uid
        table.num_prompt[slot] = len(request.prompt)
        table.num_tokens[slot] = len(entry.tokens)
        table.num_computed[slot] = num_cached_tokens
        table.num_published[slot] = state.pool.num_filled(blocks[:num_cached_blocks]) if num_cached_blocks else 0
        table.limit[slot] = entry.limit
        table.min_total[slot] = len(request.prompt) + request.sampling.min_tokens
        table.priority[slot] = request.priority
        table.rank[slot], table.seniority[slot] = entry.place_in_line
        table.set_stop_tokens(slot, request.stop_token_ids)
        table.append_blocks(slot, blocks)
        state.holder[blocks.astype(np.intp)] = slot
        if num_cached_blocks:
            state.holder[blocks[:num_cached_blocks]] = -1
        state.priorities[request.priority] += 1
        self._set_status(entry, status)

    def _vacate(self, entry: Entry, by_step: bool = False) -> IntArray:
        """Take the slot back; returns the blocks, which are the caller's now. Steps in flight may still write to them;
        later steps of the same device stream come after that, so they can be handed out at once.

        by_step: by the result of a step. If not, the device may not know yet that the request has left.
        """
        assert entry.handle is not None
        state, table, slot = self._state, self._state.table, entry.handle.slot
        if entry.status is _PREFILLING:
            state.prefilling.remove(entry)
        blocks = table.blocks_of(slot)
        table.clear_blocks(slot)
        table.status[slot] = EMPTY
        if by_step or not state.config.quarantine_slots:
            state.slots.release(entry.handle)
        else:
            state.slots.quarantine(entry.handle, entry.uid, state.now)
        state.occupants[slot] = None
        entry.handle = None
        priority = entry.request.priority
        state.priorities[priority] -= 1
        if not state.priorities[priority]:
            del state.priorities[priority]
        if entry.request.spans:
            state.encoder.release(entry.uid)
        return blocks

    def _lease(self, uid: int, lease: Lease) -> None:
        self._state.holder[lease.blocks] = -1
        self._state.leases.begin(uid, lease._replace(began=self._state.now))

    def _kept_from_outside(self, entry: Entry, blocks: IntArray) -> IntArray:
        """The blocks that go back to the pool, of the blocks that a request gives up: none while a connector may still
        write to them."""
        if not entry.filled_from_outside:
            return blocks
        entry.filled_from_outside = False
        self._lease(entry.uid, Lease(Holder.RECEIVER, blocks.copy()))
        self._state.stopped_pulls.append(entry.uid)
        return _NO_BLOCKS

    def _take_out(self, entry: Entry, status: RequestStatus, by_step: bool) -> IntArray:
        """The one way out. Returns the blocks that it held, which the caller gives back."""
        was, state = entry.status, self._state
        if was is _DECODING:
            self._left(int(state.table.num_tokens[entry.slot] - state.table.num_prompt[entry.slot]))
        del state.entries[entry.uid]
        blocks = _NO_BLOCKS
        if entry.handle is not None:
            blocks = self._kept_from_outside(entry, self._vacate(entry, by_step))
        self._set_status(entry, status)
        if was in _QUEUED:
            state.waiting.take(entry)
        elif was not in _RUNNING:
            state.deadlines.clear(entry.uid)
        state.counters.requests_ended += 1
        return blocks

    def _take_out_all(self, entries: Sequence[Entry], by_step: bool) -> None:
        if not entries:
            return
        statuses = [self._after(_END, entry) for entry in entries]
        taken = [self._take_out(entry, status, by_step) for entry, status in zip(entries, statuses, strict=True)]
        self._state.pool.release_all(taken)
