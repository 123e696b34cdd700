"""Everything the writer owns, and the moves a request can make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.config import Role, SchedulerConfig
from headway.kvcache import BlockPool, PrefixCache, media_keys
from headway.request import FinishReason, Request, RequestStatus
from headway.scheduler.batch import IntArray
from headway.scheduler.effects import Progress, RequestEnd
from headway.scheduler.policies.line import Line
from headway.scheduler.state.deadlines import Deadlines
from headway.scheduler.state.encoder_cache import EncoderCache
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.slot_pool import SlotHandle, SlotPool
from headway.scheduler.state.slot_table import DECODE, DRAIN, PREFILL, SEATED, SlotTable
from headway.scheduler.state.waiting_queue import WaitingQueue

_QUEUED = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
_RUNNING = (RequestStatus.RUNNING_PREFILL, RequestStatus.RUNNING_DECODE)
# Looked up once; see `slots`.
_PREFILLING, _DECODING = _RUNNING
_RESERVED, _FINISHED = RequestStatus.RESERVED, RequestStatus.FINISHED
_STOP, _LENGTH = FinishReason.STOP, FinishReason.LENGTH
_NO_BLOCKS: IntArray = np.zeros(0, dtype=np.int32)


@dataclass(slots=True)
class Counters:
    """What happened since the start; kept as we go."""

    requests_added: int = 0
    requests_ended: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0


class State:
    """Requests, slots and blocks of one scheduler.

        new --> (preparing) --> waiting --> running (prefill, decode) --> ended
                                   ^              |
                                   +-- preempted -+                  ... and from each of them --> ended
        P:  new --> reserved --> running (prefill) --> sending --> ended
        D:  new --> reserved --> running (decode) --> ended

    occupants: the request in each slot.
    prefilling: the running requests with known tokens still to compute, in order of admission.
    leases: blocks that are read by a sender, by the uid of the request whose KV they hold; they stay until it says so,
        also if the request has ended.
    holder: int32 [num_blocks]; the slot that took a block for itself alone, -1 where that is not known. Out of date for
        blocks that nobody refers to.
    paused: nobody is let in and nothing is scheduled.
    population: requests by status. priorities: running requests by priority.
    """

    def __init__(self, config: SchedulerConfig, line: Line) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks, config.block_size)
        self.prefix = PrefixCache(self.pool)
        self.encoder = EncoderCache(config.encoder_budget)
        self.table = SlotTable(config.max_num_seqs, config.blocks_per_request, config.block_size)
        self.slots = SlotPool(self.table)
        self.waiting = WaitingQueue()
        self.deadlines = Deadlines()
        self.entries: dict[int, Entry] = {}
        self.occupants: list[Entry | None] = [None] * config.max_num_seqs
        self.prefilling: list[Entry] = []
        self.holder = np.full(config.num_blocks, -1, dtype=np.int32)
        self.leases: dict[int, IntArray] = {}
        self.num_leased_blocks = 0
        self.population = [0] * len(RequestStatus)
        self.priorities: Counter[int] = Counter()
        self.counters = Counters()
        self.paused = False
        self.block_shift = config.block_size.bit_length() - 1  # position >> block_shift: column in the block table
        self.offset_mask = config.block_size - 1  # position & offset_mask: place within the block
        self._line = line

    # -- moves ---------------------------------------------------------------------------------------------------

    def accept(self, request: Request, status: RequestStatus) -> Entry:
        """A new request, which counts from now on. Whoever waits has its place in the queue."""
        self.counters.requests_added += 1
        entry = Entry(
            request=request,
            place_in_line=(self._line.rank(request), self.counters.requests_added),
            limit=self._limit(request),
            tokens=request.prompt,
            node=self.prefix.root(request.cache_salt),
            media_keys=self._media_keys(request),
            status=status,
        )
        self.entries[request.uid] = entry
        self.population[status] += 1
        if status is RequestStatus.WAITING:
            self.waiting.push(entry)
        return entry

    def refuse(self, entry: Entry) -> None:
        """Take back the acceptance just made: it holds nothing and is told to nobody."""
        self.counters.requests_added -= 1
        self.population[entry.status] -= 1
        del self.entries[entry.uid]

    def prepared(self, entry: Entry, request: Request) -> None:
        """What a preprocess job made of a request; it takes the place in the queue that its arrival gave it."""
        self.deadlines.clear(entry.uid)
        entry.request, entry.tokens, entry.limit = request, request.prompt, self._limit(request)
        entry.media_keys = self._media_keys(request)
        self._move(entry, RequestStatus.WAITING)
        self.waiting.push(entry)

    def seat(self, entry: Entry, blocks: IntArray, num_cached_tokens: int) -> SlotHandle:
        """A slot, and these blocks, whose leading ones hold KV already. Nothing is computed before `start`."""
        request, table = entry.request, self.table
        handle = self.slots.acquire()
        slot = handle.slot
        self.occupants[slot] = entry
        table.uid[slot] = request.uid
        table.num_prompt[slot] = len(request.prompt)
        table.num_tokens[slot] = len(entry.tokens)
        table.num_computed[slot] = num_cached_tokens
        table.num_published[slot] = num_cached_tokens >> self.block_shift
        table.limit[slot] = entry.limit
        table.min_total[slot] = len(request.prompt) + request.sampling.min_tokens
        table.priority[slot] = request.priority
        table.rank[slot], table.seniority[slot] = entry.place_in_line
        table.set_stop_tokens(slot, request.stop_token_ids)
        table.append_blocks(slot, blocks)
        self.holder[blocks] = slot
        if num_cached_tokens:
            self.holder[blocks[: num_cached_tokens >> self.block_shift]] = -1
        table.set_phase(slot, SEATED)
        self.priorities[request.priority] += 1
        entry.handle = handle
        self._move(entry, _RESERVED)
        return handle

    def start(self, entry: Entry) -> None:
        """Compute a seated request, from here on."""
        self.table.set_phase(entry.slot, PREFILL)
        self.prefilling.append(entry)
        self._move(entry, _PREFILLING)

    def grow(self, rows: NDArray[np.intp], columns: IntArray) -> IntArray:
        """One more block for each of these rows, at these columns of their tables, which come next. int32."""
        blocks = self.pool.take(len(rows))
        self.table.append_block_each(rows, columns, blocks)
        self.holder[blocks] = rows
        return blocks

    def complete_prefill(self, entry: Entry) -> None:
        """All that is known is computed, or will be by the step now made: decode from here on."""
        table, slot, known = self.table, entry.slot, len(entry.tokens)
        self.prefilling.remove(entry)
        self._move(entry, _DECODING)
        table.set_phase(slot, DRAIN if entry.limit == known + 1 else DECODE)
        if in_tail := known & self.offset_mask:
            table.tail_block[slot] = table.block_tables[slot, known >> self.block_shift]
            table.tail_tokens[slot, :in_tail] = entry.tokens[known - in_tail :]

    def preempt(self, entry: Entry) -> None:
        """A running request gives up slot and blocks and goes back to its place in the queue."""
        entry.tokens = self.known_tokens(entry)
        entry.num_matched, entry.sought = int(self.table.num_published[entry.slot]), None
        self.pool.release(self._vacate(entry))
        self._move(entry, RequestStatus.PREEMPTED)
        entry.num_preemptions += 1
        self.counters.preemptions += 1
        self.waiting.push(entry)

    def lend(self, entry: Entry, outcome: FinishReason) -> IntArray:
        """All is computed: the slot is free, the blocks are a sender's until it says that it is done with them."""
        blocks = self.table.blocks_of(entry.slot).copy()
        entry.tokens = self.known_tokens(entry)
        self._vacate(entry)
        self.holder[blocks] = -1
        self.leases[entry.uid] = blocks
        self.num_leased_blocks += len(blocks)
        entry.outcome = outcome
        self._move(entry, RequestStatus.SENDING)
        return blocks

    def end_lease(self, uid: int) -> None:
        """Nobody reads these blocks any more."""
        blocks = self.leases.pop(uid)
        self.num_leased_blocks -= len(blocks)
        self.pool.release(blocks)

    def end(
        self, entry: Entry, reason: FinishReason, *, stop_token: int | None = None, message: str | None = None
    ) -> RequestEnd:
        """A request ends, in whatever state it is."""
        self.pool.release(self._take_out(entry))
        return RequestEnd(entry.uid, entry.request.request_id, reason, stop_token, message)

    def end_each(self, ends: Sequence[tuple[Entry, int | None]]) -> list[RequestEnd]:
        """Each ends by this stop token, or, where there is none, by its length; their blocks go back together."""
        if not ends:
            return []
        self.pool.release_all([self._take_out(entry) for entry, _ in ends])
        return [
            RequestEnd(entry.uid, entry.request.request_id, _LENGTH if token is None else _STOP, token)
            for entry, token in ends
        ]

    def end_all(
        self, entries: Iterable[Entry], reason: FinishReason, *, message: str | None = None
    ) -> list[RequestEnd]:
        """Many end at once, for the same reason; their blocks go back together."""
        entries = list(entries)
        if not entries:
            return []
        self.pool.release_all([self._take_out(entry) for entry in entries])
        return [RequestEnd(entry.uid, entry.request.request_id, reason, None, message) for entry in entries]

    def publish(self, entry: Entry, num_full_blocks: int) -> None:
        """Let others find so many leading blocks of a seated request: they are full, and their steps have succeeded."""
        if not self.config.enable_prefix_caching:
            return
        table, slot = self.table, entry.slot
        first = int(table.num_published[slot])
        if num_full_blocks <= first:
            return
        blocks = table.block_tables[slot, first:num_full_blocks]
        size = self.config.block_size
        if num_full_blocks * size <= len(entry.tokens):
            contents = entry.tokens[first * size : num_full_blocks * size].tobytes()
        else:
            contents = self.pool.tokens[blocks].tobytes()
        entry.node = self.prefix.publish(entry.node, contents, blocks.tolist(), entry.media_keys, first)
        table.num_published[slot] = num_full_blocks

    def reset_prefix_cache(self) -> int:
        """Forget what is cached; returns how many blocks were. What the seated have computed is never found again."""
        for entry in self.occupants:
            if entry is not None:
                entry.node = self.prefix.orphan()
        self.encoder.clear()
        return self.prefix.clear()

    # -- reads ---------------------------------------------------------------------------------------------------

    @property
    def num_held_blocks(self) -> int:
        """References to blocks, by all owners together."""
        return self.table.num_held_blocks + self.num_leased_blocks

    def occupant(self, slot: int) -> Entry:
        """The request that runs in a slot."""
        entry = self.occupants[slot]
        assert entry is not None, f"slot {slot} is empty"
        return entry

    def known_tokens(self, entry: Entry) -> IntArray:
        """Prompt and confirmed output of a running request, int32. What is in flight is not known."""
        table, slot = self.table, entry.slot
        num_tokens = int(table.num_tokens[slot])
        if num_tokens == len(entry.tokens):
            return entry.tokens
        num_full, in_tail = divmod(num_tokens - 1, self.config.block_size)  # without the last one, not computed yet
        full = self.pool.tokens[table.block_tables[slot, :num_full]].ravel()
        return np.concatenate((full, table.tail_tokens[slot, :in_tail], table.last_token[slot : slot + 1]))

    def num_confirmed_tokens(self, entry: Entry) -> int:
        """Leading tokens of a decoding request whose KV is there for sure; 0 while its prefill is still in flight."""
        num_tokens = int(self.table.num_tokens[entry.slot])
        return num_tokens - 1 if num_tokens > len(entry.tokens) else 0

    def progress(self, entry: Entry) -> Progress:
        """How far a request is."""
        table, request = self.table, entry.request
        seated, sending = entry.handle is not None, entry.status is RequestStatus.SENDING
        num_tokens = int(table.num_tokens[entry.slot]) if seated else len(entry.tokens)
        num_computed = int(table.num_computed[entry.slot]) if seated else len(request.prompt) * sending
        return Progress(
            uid=request.uid,
            request_id=request.request_id,
            status=entry.status,
            num_prompt_tokens=len(request.prompt),
            num_output_tokens=num_tokens - len(request.prompt),
            num_computed_tokens=num_computed,
            num_blocks=int(table.num_blocks[entry.slot]) if seated else len(self.leases.get(request.uid, ())),
            num_preemptions=entry.num_preemptions,
        )

    def computing_slots(self) -> NDArray[np.intp]:
        """Slots whose requests can be preempted: those that have more to compute. Ascending, intp."""
        phase = self.table.phase
        slots: NDArray[np.intp] = ((phase == DECODE) | (phase == PREFILL)).nonzero()[0]
        return slots

    def _limit(self, request: Request) -> int:
        return len(request.prompt) + (1 if self.config.role is Role.PREFILL else request.max_tokens)

    def _media_keys(self, request: Request) -> dict[int, bytes]:
        if not request.spans:
            return {}
        return media_keys([(span.start, span.length, span.digest) for span in request.spans], self.config.block_size)

    def _move(self, entry: Entry, status: RequestStatus) -> None:
        self.population[entry.status] -= 1
        self.population[status] += 1
        entry.status = status

    def _take_out(self, entry: Entry) -> IntArray:
        """The one way out. Returns the blocks that it held, which the caller gives back."""
        was = entry.status
        del self.entries[entry.uid]
        blocks = _NO_BLOCKS if entry.handle is None else self._vacate(entry)
        self._move(entry, _FINISHED)
        if was in _QUEUED:
            self.waiting.take(entry)
        elif was not in _RUNNING:
            self.deadlines.clear(entry.uid)
        self.counters.requests_ended += 1
        return blocks

    def _vacate(self, entry: Entry) -> IntArray:
        """Take the slot back; returns the blocks, which are the caller's now. Steps in flight may still write to them;
        later steps of the same device stream come after that, so they can be handed out at once."""
        assert entry.handle is not None
        table, slot = self.table, entry.slot
        if entry.status is _PREFILLING:
            self.prefilling.remove(entry)
        blocks = table.blocks_of(slot)
        table.clear_blocks(slot)
        self.slots.release(entry.handle)
        self.occupants[slot] = None
        entry.handle = None
        priority = entry.request.priority
        self.priorities[priority] -= 1
        if not self.priorities[priority]:
            del self.priorities[priority]
        if entry.request.spans:
            self.encoder.release(entry.uid)
        return blocks
