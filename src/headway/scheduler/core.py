"""The scheduler: messages in, effects out; batches in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from headway.config import Role, SchedulerConfig
from headway.request import FinishReason, Request
from headway.scheduler.admission import Admissions
from headway.scheduler.allocation import Allocation, DynamicAllocation
from headway.scheduler.batch import Batch, StepResult
from headway.scheduler.decoding import DecodeRows
from headway.scheduler.messages import (
    AbortRequests,
    AddRequest,
    DeviceLost,
    Effects,
    FinishRequests,
    Message,
    RequestEnd,
    Snapshot,
)
from headway.scheduler.results import Results
from headway.scheduler.slots import Phase, RequestManager
from headway.scheduler.state import State
from headway.scheduler.steps import NO_GROWTH, NO_PLACES, Chunk, DecodePlaces, Steps, TableGrowth


class Scheduler:
    """Decides, step by step, what runs. See the package's docstring for how it is driven.

    One caller at a time: whoever owns it is the writer.
    """

    def __init__(self, config: SchedulerConfig, allocation: Allocation | None = None) -> None:
        self.config = config
        self._state = State(config)
        self._admissions = Admissions(self._state, allocation or DynamicAllocation())
        self._steps = Steps(self._state, self._admissions)
        self._results = Results(self._state)
        self._decodes = DecodeRows.none(self._state.table)
        self._handlers: dict[type, Callable[[Any, Effects], None]] = {
            AddRequest: self._add,
            StepResult: self._step_done,
            FinishRequests: lambda message, effects: self._end_all(message.uids, FinishReason.STOP, effects),
            AbortRequests: lambda message, effects: self._end_all(message.uids, FinishReason.ABORT, effects),
            DeviceLost: self._device_lost,
        }

    # -- messages ------------------------------------------------------------------------------------------------

    def apply(self, message: Message, now: float = 0.0) -> Effects:
        """Carry out one message. It is applied whole, or it raises and nothing has changed."""
        effects = Effects()
        self._handlers[type(message)](message, effects)
        if self.config.role is Role.PREFILL:  # whose pass allocates nothing
            while self._admissions.admit_head(num_decoding=0):
                pass
        return effects

    def _add(self, message: AddRequest, effects: Effects) -> None:
        state, request = self._state, message.request
        if request.uid in state.entries:
            raise ValueError(f"uid {request.uid} of request {request.request_id!r} is in use")
        state.counters.requests_added += 1
        total = len(request.prompt) + request.max_tokens
        if len(request.prompt) and request.max_tokens >= 1 and total <= self.config.max_model_len:
            state.enqueue(request)
            return
        state.counters.requests_ended += 1
        reason = (
            f"a request needs 1 prompt token, 1 output token and at most max_model_len ({self.config.max_model_len}) "
            f"in all; got {len(request.prompt)} and {request.max_tokens}"
        )
        effects.ended.append(RequestEnd(request.uid, request.request_id, FinishReason.ERROR, message=reason))

    def _end_all(self, uids: Iterable[int], reason: FinishReason, effects: Effects) -> None:
        for uid in uids:
            entry = self._state.entries.get(uid)
            if entry is not None:
                effects.ended.append(self._state.end(entry, reason))

    def _step_done(self, result: StepResult, effects: Effects) -> None:
        step = self._steps.in_flight.pop(result.step_id, None)
        if step is None:
            return  # given up before, or told twice
        effects.started = self._admissions.take_started()
        self._results.apply(step, result, effects)

    def _device_lost(self, message: DeviceLost, effects: Effects) -> None:
        self._steps.in_flight.clear()
        effects.ended += self._state.end_slots(self._state.running_slots().tolist(), message.reason)
        self._state.prefix.clear()  # its blocks held KV that is gone

    # -- passes --------------------------------------------------------------------------------------------------

    def schedule(self, now: float = 0.0) -> tuple[Batch | None, list[RequestEnd]]:
        """The next step: all decodes, then prefill chunks, then newcomers, within `max_num_batched_tokens`.

        Returns the batch, None when there is nothing to compute, and the requests that this pass had to end.
        """
        errors: list[RequestEnd] = []
        num_preemptions = self._state.counters.preemptions
        places = self._make_room(errors)
        decodes = self._decode_rows()
        budget = self.config.max_num_batched_tokens - len(decodes)
        chunks = self._next_chunks(budget)
        if num_preemptions == self._state.counters.preemptions:  # else a newcomer would take the blocks just won
            budget -= sum(chunk.count for chunk in chunks)
            while budget > 0 and self._admissions.admit_head(len(decodes)):
                chunks += self._next_chunks(budget)
                budget -= chunks[-1].count
        return self._steps.launch(decodes, places, chunks), errors

    def prefill_schedule(self, now: float = 0.0) -> tuple[Batch | None, list[RequestEnd]]:
        """The pass of a prefill instance: running prefills alone, the whole budget, no waiting queue, no allocation.

        A request got slot and blocks when its message was applied, or when enough of them were given back.
        """
        chunks = self._next_chunks(self.config.max_num_batched_tokens)
        return self._steps.launch(DecodeRows.none(self._state.table), NO_PLACES, chunks), []

    def _decode_rows(self) -> DecodeRows:
        table = self._state.table
        if self._decodes.epoch != table.epoch:
            self._decodes = DecodeRows.of(table, np.flatnonzero(table.phase == Phase.DECODE))
        return self._decodes

    def _make_room(self, errors: list[RequestEnd]) -> DecodePlaces:
        """Give every decoding row a place for its next token, preempting others where blocks are short."""
        state, table, pool = self._state, self._state.table, self._state.pool
        while True:
            rows = self._decode_rows().rows
            positions = table.num_computed[rows]
            offsets = positions & state.offset_mask
            at_start = (offsets == 0).nonzero()[0]  # of a block, perhaps a new one
            if not len(at_start):
                return DecodePlaces(positions, offsets, NO_GROWTH)
            starting = rows[at_start]
            columns = positions[at_start] >> state.block_shift
            lacks = columns == table.num_blocks[starting]
            growing = starting[lacks]
            if len(growing) <= pool.num_available:
                break
            self._preempt_one(errors)
        growth = NO_GROWTH
        if len(growing):
            growth = TableGrowth(growing.astype(np.int32), columns[lacks], pool.take(len(growing)))
            table.append_block_each(growing, growth.columns, growth.blocks)
        if len(growing) == len(starting):
            table.tail_block[growing] = growth.blocks
        else:  # some hold the block already
            table.tail_block[starting] = table.block_tables[starting, columns]
        return DecodePlaces(positions, offsets, growth)

    def _preempt_one(self, errors: list[RequestEnd]) -> None:
        """Take slot and blocks from the last in line. The first in line keeps them while there is another, so that
        somebody always gets to the end."""
        state, table = self._state, self._state.table
        rows = np.flatnonzero((table.phase == Phase.DECODE) | (table.phase == Phase.PREFILL))
        last = state.occupant(rows[np.lexsort((table.seniority[rows], table.priority[rows]))[-1]])
        if len(rows) > 1 or self._steps.in_flight:
            state.preempt(last)
            return
        held = f"{state.pool.counts.referenced} of {state.pool.num_blocks - 1} blocks are held"
        message = f"the KV cache has no block left: {held}, {table.num_held_blocks} by this request"
        errors.append(state.end(last, FinishReason.ERROR, message=message))

    def _next_chunks(self, budget: int) -> list[Chunk]:
        """The next chunk of each prefilling request that has none in this step yet, within the budget."""
        state, table = self._state, self._state.table
        chunks = []
        for entry in list(state.prefilling):
            if budget <= 0:
                break
            assert entry.handle is not None
            start = int(table.num_computed[entry.slot])
            count = min(budget, len(entry.tokens) - start)
            budget -= count
            completes = start + count == len(entry.tokens)
            table.num_computed[entry.slot] = start + count
            chunks.append(Chunk(entry, entry.handle, start, count, completes))
            if completes:
                state.complete_prefill(entry)
        return chunks

    # -- reads, for the owner only -------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The state in numbers, O(1)."""
        return self._state.snapshot(self._steps.last_id, len(self._steps.in_flight))

    def requests(self) -> list[Request]:
        """All requests that have not ended."""
        return [entry.request for entry in self._state.entries.values()]

    @property
    def slots(self) -> RequestManager:
        """Who gets which slot."""
        return self._state.slots

    def audit(self) -> None:
        """Full check of who owns what, O(slots + blocks). Raises OwnershipError or AssertionError."""
        self._state.audit()
