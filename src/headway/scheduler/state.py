"""Everything the writer owns, and the moves a request can make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.config import SchedulerConfig
from headway.kvcache import BlockPool, PrefixCache
from headway.request import FinishReason, Request, RequestStatus
from headway.scheduler.batch import IntArray
from headway.scheduler.entry import Entry
from headway.scheduler.messages import RequestEnd, Snapshot
from headway.scheduler.slots import Phase, RequestManager, SlotHandle, SlotTable
from headway.scheduler.waiting import WaitingQueue


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

        new --> waiting --> running (prefill, decode) --> ended
                   ^              |
                   +-- preempted -+        ... and from each of them --> ended

    occupants: the request in each slot.
    prefilling: the running requests with known tokens still to compute, in order of admission.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks, config.block_size)
        self.prefix = PrefixCache(self.pool)
        self.table = SlotTable(config.max_num_seqs, config.blocks_per_request, config.block_size)
        self.slots = RequestManager(self.table)
        self.waiting = WaitingQueue()
        self.entries: dict[int, Entry] = {}
        self.occupants: list[Entry | None] = [None] * config.max_num_seqs
        self.prefilling: list[Entry] = []
        self.counters = Counters()
        self.block_shift = config.block_size.bit_length() - 1  # position >> block_shift: column in the block table
        self.offset_mask = config.block_size - 1  # position & offset_mask: place within the block

    def enqueue(self, request: Request) -> None:
        """A new request gets its place in the queue."""
        entry = Entry(request, self.counters.requests_added, request.prompt, self.prefix.root(request.cache_salt))
        self.entries[request.uid] = entry
        self.waiting.push(entry)

    def install(self, entry: Entry, blocks: IntArray, num_cached_tokens: int) -> SlotHandle:
        """A waiting request gets a slot and these blocks, whose leading ones hold KV already."""
        request, table = entry.request, self.table
        handle = self.slots.acquire_slot()
        slot = handle.slot
        self.occupants[slot] = entry
        table.uid[slot] = request.uid
        table.num_tokens[slot] = len(entry.tokens)
        table.num_computed[slot] = num_cached_tokens
        table.limit[slot] = entry.limit
        table.min_total[slot] = len(request.prompt) + request.sampling.min_tokens
        table.priority[slot] = request.priority
        table.seniority[slot] = entry.seniority
        table.set_stop_tokens(slot, request.stop_token_ids)
        table.append_blocks(slot, blocks)
        table.set_phase(slot, Phase.PREFILL)
        entry.status = RequestStatus.RUNNING_PREFILL
        entry.handle = handle
        self.prefilling.append(entry)
        return handle

    def complete_prefill(self, entry: Entry) -> None:
        """All that is known is computed, or will be by the step now made: decode from here on."""
        table, slot, known = self.table, entry.slot, len(entry.tokens)
        self.prefilling.remove(entry)
        entry.status = RequestStatus.RUNNING_DECODE
        table.set_phase(slot, Phase.DRAIN if entry.limit == known + 1 else Phase.DECODE)
        if in_tail := known & self.offset_mask:
            table.tail_block[slot] = table.block_tables[slot, known >> self.block_shift]
            table.tail_tokens[slot, :in_tail] = entry.tokens[known - in_tail :]

    def preempt(self, entry: Entry) -> None:
        """A running request gives up slot and blocks and goes back to its place in the queue."""
        entry.tokens = self.known_tokens(entry)
        self._vacate(entry)
        entry.status = RequestStatus.PREEMPTED
        entry.node = self.prefix.root(entry.request.cache_salt)
        self.counters.preemptions += 1
        self.waiting.push(entry)

    def end(
        self, entry: Entry, reason: FinishReason, *, stop_token: int | None = None, message: str | None = None
    ) -> RequestEnd:
        """The one way a request ends, from whatever state."""
        request = entry.request
        del self.entries[request.uid]
        was_running = entry.handle is not None
        if was_running:
            self._vacate(entry)
        entry.status = RequestStatus.FINISHED
        if not was_running:
            self.waiting.forget(entry)
        self.counters.requests_ended += 1
        return RequestEnd(request.uid, request.request_id, reason, stop_token, message)

    def end_slots(self, slots: list[int], message: str) -> list[RequestEnd]:
        """The requests in these slots end with an error."""
        return [self.end(self.occupant(slot), FinishReason.ERROR, message=message) for slot in slots]

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

    def running_slots(self) -> NDArray[np.intp]:
        """Slots in use, ascending, intp."""
        return np.flatnonzero(self.table.phase != Phase.EMPTY)

    def snapshot(self, step_id: int, num_in_flight: int) -> Snapshot:
        """The state in numbers, O(1)."""
        counts, counters = self.pool.counts, self.counters
        return Snapshot(
            step_id=step_id,
            num_running=self.config.max_num_seqs - self.slots.available_batch(),
            num_waiting=len(self.waiting),
            num_in_flight=num_in_flight,
            num_slots=self.config.max_num_seqs,
            num_blocks_total=self.config.num_blocks - 1,
            num_blocks_free=counts.free,
            num_blocks_evictable=counts.evictable,
            num_requests_added=counters.requests_added,
            num_requests_ended=counters.requests_ended,
            num_preemptions=counters.preemptions,
            num_prompt_tokens=counters.prompt_tokens,
            num_generation_tokens=counters.generation_tokens,
            num_prefix_query_tokens=counters.prefix_query_tokens,
            num_prefix_hit_tokens=counters.prefix_hit_tokens,
        )

    def audit(self) -> None:
        """Full check of who owns what, O(slots + blocks). Raises OwnershipError or AssertionError."""
        table = self.table
        self.pool.audit(np.concatenate([table.blocks_of(slot) for slot in range(table.capacity)]))
        running = [entry for entry in self.occupants if entry is not None]
        assert len(running) + self.slots.available_batch() == table.capacity, "a slot is lost or owned twice"
        assert len(running) + len(self.waiting) == len(self.entries), "a request is lost"
        assert all(entry.handle is not None and table.owns(*entry.handle) for entry in running), "a handle is void"

    def _vacate(self, entry: Entry) -> None:
        """Take slot and blocks back. Steps in flight may still write to the blocks; later steps of the same device
        stream come after that, so the blocks can be handed out at once."""
        assert entry.handle is not None
        slot = entry.slot
        if self.table.phase[slot] == Phase.PREFILL:
            self.prefilling.remove(entry)
        self.pool.release(self.table.blocks_of(slot))
        self.table.clear_blocks(slot)
        self.slots.release_slot(entry.handle)
        self.occupants[slot] = None
        entry.handle = None
