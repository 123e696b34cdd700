"""Everything the writer owns."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from headway.config import Role, SchedulerConfig
from headway.kvcache import BlockPool, PrefixCache
from headway.request import FinishReason, RequestStatus
from headway.scheduler.answers import Progress
from headway.scheduler.batch import IntArray
from headway.scheduler.state.counters import Counters
from headway.scheduler.state.deadlines import Deadlines
from headway.scheduler.state.encoder_cache import EncoderCache
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.leases import Holder, Leases
from headway.scheduler.state.slot_pool import SlotPool
from headway.scheduler.state.slot_table import SlotTable
from headway.scheduler.state.waiting_queue import WaitingQueue


class State:
    """Requests, slots and blocks of one scheduler. Requests change by `Moves` alone.

    only_prefills: this is the scheduler of a prefill engine; asked for each request.
    occupants: the request in each slot.
    prefilling: the running requests with known tokens still to compute, in order of admission.
    leases: blocks that a sender or borrower reads, or a receiver writes to, by the uid of the request whose KV they
        hold; the request may have ended.
    holder: int32 [num_blocks]; the slot that took a block for itself alone, -1 where it is unknown. Out of date for
        blocks without a reference.
    now: seconds; the time of the last message or query.
    last_step: id of the last step launched; 0 before the first.
    paused: no request is admitted and no step is scheduled.
    holds_admissions: no request is admitted; requests with a slot go on.
    preempted: uids of requests that were preempted since this was last asked for, in order.
    stopped_pulls: uids whose connector must be told to stop.
    population: requests by status. priorities: running requests by priority.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.only_prefills = config.role is Role.PREFILL
        self.pool = BlockPool(config.num_blocks, config.block_size)
        self.prefix = PrefixCache(self.pool, keeps_events=config.keeps_kv_events)
        self.encoder = EncoderCache(config.encoder_budget)
        self.table = SlotTable(config.max_num_seqs, config.blocks_per_request, config.block_size)
        self.slots = SlotPool(self.table)
        self.waiting = WaitingQueue()
        self.deadlines = Deadlines()
        self.entries: dict[int, Entry] = {}
        self.occupants: list[Entry | None] = [None] * config.max_num_seqs
        self.prefilling: list[Entry] = []
        self.holder = np.full(config.num_blocks, -1, dtype=np.int32)
        self.leases = Leases()
        self.population = [0] * len(RequestStatus)
        self.priorities: Counter[int] = Counter()
        self.counters = Counters()
        self.last_step = 0
        self.now = 0.0
        self.stopped_pulls: list[int] = []
        self.paused = False
        self.holds_admissions = False
        self.preempted: list[int] = []
        self.block_shift = config.block_size.bit_length() - 1  # position >> block_shift: column in the block table
        self.offset_mask = config.block_size - 1  # position & offset_mask: place within the block

    # -- blocks --------------------------------------------------------------------------------------------------

    def grow(self, rows: NDArray[np.intp], columns: IntArray) -> IntArray:
        """One more block for each of these rows, at these columns of their tables, which come next. int32."""
        blocks = self.pool.take(len(rows))
        self.table.append_block_each(rows, columns, blocks)
        self.holder[blocks] = rows
        return blocks

    def store(self, entry: Entry, end: int) -> None:
        """The KV of the known tokens of a request with a slot is there, up to `end`: publish the blocks that are
        full."""
        self.publish(entry, self._num_shareable(entry, end))

    def announce(self, entry: Entry, end: int) -> None:
        """The step that is made now computes the known tokens of a request with a slot up to `end`. Show other requests
        the blocks that become full: they are pending for that step, whatever becomes of the request."""
        first, last = entry.num_matched, self._num_shareable(entry, end)
        if not self.config.enable_prefix_caching or last <= first:
            return
        size, step_id = self.config.block_size, self.last_step + 1
        blocks = self.table.block_tables[entry.slot, first:last]
        contents = entry.tokens[first * size : last * size].tobytes()
        entry.node = self.prefix.publish(entry.node, contents, blocks, entry.media_keys, first, step_id)
        entry.num_matched, entry.next_key = last, None

    def settle(self, blocks: IntArray, step_id: int) -> None:
        """This step has filled these blocks. Only the blocks that wait for it are changed: not a block that was given
        up meanwhile, or that the prefix cache has from another row."""
        if len(blocks):
            self.pool.settle(self.pool.pending_of(blocks, step_id))

    def withdraw(self, blocks: IntArray, step_id: int) -> IntArray:
        """This step fills these announced blocks with wrong KV, or not at all: they leave the prefix cache. Returns
        the blocks that were pending for it still, int32."""
        blocks = self.pool.pending_of(blocks, step_id)
        if len(blocks):
            self.pool.withdraw(blocks[::-1])
        return blocks

    def _num_shareable(self, entry: Entry, end: int) -> int:
        """Full blocks before `end` that others may find. Blocks of output only with `enable_output_caching`."""
        last = end >> self.block_shift
        return last if self.config.enable_output_caching else min(last, len(entry.request.prompt) >> self.block_shift)

    def publish(self, entry: Entry, num_full_blocks: int) -> None:
        """Let other requests find these leading blocks of a request with a slot. They are full, and their steps have
        succeeded."""
        if not self.config.enable_prefix_caching:
            return
        table, slot = self.table, entry.slot
        first = int(table.num_published[slot])
        if num_full_blocks <= first:
            return
        blocks = table.block_tables[slot, first:num_full_blocks]
        size, tokens = self.config.block_size, entry.tokens
        if num_full_blocks * size > len(tokens):
            tokens = self.known_tokens(entry)
        contents = tokens[first * size : num_full_blocks * size].tobytes()
        entry.node = self.prefix.publish(entry.node, contents, blocks, entry.media_keys, first)
        table.num_published[slot] = entry.num_matched = num_full_blocks
        entry.next_key = None

    def fill(self, rows: NDArray[np.intp], blocks: IntArray) -> None:
        """The tail of each of these decoding rows is a full block now: keep its tokens with it, and publish it."""
        contents = self.table.tail_tokens[rows]
        self.pool.tokens[blocks.astype(np.intp)] = contents
        if self.config.enable_prefix_caching and self.config.enable_output_caching:
            self.table.num_published[rows] += 1
            entries = [self.occupant(row) for row in rows.tolist()]
            nodes = [entry.node for entry in entries]
            nodes = self.prefix.publish_each(nodes, contents.tobytes(), blocks.tolist())
            for entry, node in zip(entries, nodes, strict=True):
                entry.node = node

    def reset_prefix_cache(self) -> int:
        """Forget what is cached; returns how many blocks were. Blocks of requests with a slot are never found again."""
        for entry in self.occupants:
            if entry is not None:
                entry.node, entry.next_key = self.prefix.orphan(), None
        self.encoder.clear()
        return self.prefix.clear()

    def take_preempted(self) -> tuple[int, ...]:
        """uids of the requests that were preempted since the last call, in order, each once."""
        if not self.preempted:
            return ()
        preempted, self.preempted = tuple(dict.fromkeys(self.preempted)), []
        return preempted

    # -- reads ---------------------------------------------------------------------------------------------------

    @property
    def num_held_blocks(self) -> int:
        """References to blocks, by all owners together."""
        return self.table.num_held_blocks + self.leases.num_blocks

    def occupant(self, slot: int) -> Entry:
        """The request that runs in a slot."""
        entry = self.occupants[slot]
        assert entry is not None, f"slot {slot} is empty"
        return entry

    def known_tokens(self, entry: Entry) -> IntArray:
        """Prompt and confirmed output of a request, int32, read-only. What is in flight is not known."""
        if entry.handle is None:
            return entry.tokens
        table, slot = self.table, entry.slot
        num_tokens = int(table.num_tokens[slot])
        if num_tokens == len(entry.tokens):
            return entry.tokens
        size = self.config.block_size
        num_full, in_tail = divmod(num_tokens - 1, size)  # without the last one, not computed yet
        first = len(entry.tokens) >> self.block_shift  # the blocks from here on were filled by decodes
        tokens = np.concatenate(
            (
                entry.tokens[: first * size],
                self.pool.tokens[table.block_tables[slot, first:num_full]].ravel(),
                table.tail_tokens[slot, :in_tail],
                table.last_token[slot : slot + 1],
            )
        )
        tokens.flags.writeable = False
        return tokens

    def num_confirmed_tokens(self, entry: Entry) -> int:
        """Leading tokens of a decoding request whose KV is there for sure; 0 while its prefill is still in flight."""
        num_tokens = int(self.table.num_tokens[entry.slot])
        return num_tokens - 1 if num_tokens > len(entry.tokens) else 0

    def reason_to_end(self, entry: Entry, token: int) -> FinishReason | None:
        """Why a running request ends with this token, the last of its known tokens; None if it goes on."""
        num_tokens = int(self.table.num_tokens[entry.slot])
        if token in entry.request.stop_token_ids and num_tokens >= self.table.min_total[entry.slot]:
            return FinishReason.STOP
        return FinishReason.LENGTH if num_tokens == entry.limit else None

    def _num_sending_blocks(self, entry: Entry) -> int:
        lease = self.leases.of(entry.uid, Holder.SENDER)
        return 0 if lease is None else len(lease.blocks)

    def progress(self, entry: Entry) -> Progress:
        """How far a request is."""
        table, request = self.table, entry.request
        has_slot, sending = entry.handle is not None, entry.status is RequestStatus.SENDING
        num_tokens = int(table.num_tokens[entry.slot]) if has_slot else len(entry.tokens)
        num_computed = int(table.num_computed[entry.slot]) if has_slot else len(request.prompt) * sending
        return Progress(
            uid=request.uid,
            request_id=request.request_id,
            status=entry.status,
            num_prompt_tokens=len(request.prompt),
            num_output_tokens=num_tokens - len(request.prompt),
            num_computed_tokens=num_computed,
            num_blocks=int(table.num_blocks[entry.slot]) if has_slot else self._num_sending_blocks(entry),
            num_preemptions=entry.num_preemptions,
            num_published_blocks=int(table.num_published[entry.slot]) if has_slot else 0,
        )
