"""The scheduling thread's side: messages in, tasks for the worker out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from fastdeploy.engine.request import RequestStatus

from headway.adapters.fastdeploy.engine.acknowledgements import Acknowledgements, Owed
from headway.adapters.fastdeploy.engine.flight import Flight, Portion, Row
from headway.adapters.fastdeploy.engine.record import Record
from headway.adapters.fastdeploy.engine.slots_view import SlotsView
from headway.adapters.fastdeploy.engine.tasks import Tasks
from headway.config import Role
from headway.managers import Manager
from headway.scheduler import (
    Admission,
    Batch,
    DeviceLost,
    Effects,
    QuarantinedSlot,
    RequestEnd,
)

MAX_EARLY_ABORTS = 4096


class Scheduling:
    """What FastDeploy's scheduling thread does in a turn. It owns all that is here; other threads enroll records.

    Other threads tell it what the core cannot know by `note`; all else they tell the manager.

    requests: FastDeploy's Request by id, until its client has been answered. Other threads add to it and read it.
    records: by the core's uid. by_id: by request id, as long as something is to be done for the request.
    budget: tokens that the worker computes in one step.
    """

    def __init__(
        self, manager: Manager, slots: SlotsView, acknowledgements: Acknowledgements, budget: int, prepare: Callable
    ) -> None:
        self.requests: dict[str, Any] = {}
        self.records: dict[int, Record] = {}
        self.by_id: dict[str, Record] = {}
        self.early_aborts: dict[str, None] = {}  # of requests that have not come yet; the latest ones
        self._manager = manager
        self._slots = slots
        self._acknowledgements = acknowledgements
        self._budget = budget
        self._prepare = prepare
        self._role = manager.config.role
        self._most = manager.config.tokens_per_decode
        self._slack = manager.config.num_speculative_tokens // 2
        self._shares_blocks = manager.config.enable_prefix_caching
        self._notes: deque[tuple[Callable[[str], None], str]] = deque()
        self._by_slot: dict[int, Record] = {}
        self._stopping: dict[Record, None] = {}
        self._flight: Flight | None = None
        self._tasks = Tasks()
        self._errors: list[tuple[str, str]] = []

    # -- any thread ----------------------------------------------------------------------------------------------

    def note(self, what: Callable[[str], None], request_ids: Iterable[str]) -> None:
        """Let the scheduling thread do something in its next turn. what: a method of the next section."""
        self._notes.extend((what, request_id) for request_id in request_ids)

    def enroll(self, record: Record) -> None:
        """A request comes. Before the core is told of it."""
        self.records[record.core.uid] = record
        self.by_id[record.request_id] = record
        self.requests[record.request_id] = record.request

    def strike(self, record: Record) -> None:
        """The core has not taken it."""
        self.records.pop(record.core.uid, None)
        self.by_id.pop(record.request_id, None)
        self.requests.pop(record.request_id, None)

    # -- notes ---------------------------------------------------------------------------------------------------

    def finished(self, request_id: str) -> None:
        """FastDeploy has answered the client: the request has given its last token, or its KV was sent to D."""
        record = self.by_id.get(request_id)
        if record is None:
            self._acknowledgements.forget_answer(request_id)
            return
        record.answered = True
        if record.end is not None:
            self._close(record)
        elif record.sending:
            self._manager.send_done(record.core.uid)
        else:
            self._stop(record)

    def abort(self, request_id: str) -> None:
        """A client does not want its answer. P has agreed with D: there it is computed to its end, and D ends it."""
        record = self.by_id.get(request_id)
        if record is None:
            while len(self.early_aborts) >= MAX_EARLY_ABORTS:
                del self.early_aborts[next(iter(self.early_aborts))]
            self.early_aborts[request_id] = None
        elif record.end is None and self._role is not Role.PREFILL:
            record.aborting = True
            self._stop(record)

    def forget_abort(self, request_id: str) -> None:
        """An abort of a request that will never come."""
        self.early_aborts.pop(request_id, None)

    def drop(self, request_id: str) -> None:
        """P or D: the other side has failed. FastDeploy answers the client itself."""
        record = self.by_id.get(request_id)
        if record is not None and record.end is None:
            record.answered = True
            self._manager.drop_reservations(record.core.uid)
            self._stop(record)  # if it has started by now

    def acknowledged(self, request_id: str) -> None:
        """The worker has given up the slot of a request: its -9 has come."""
        owed = self._acknowledgements.take(request_id)
        if owed is None:
            return
        self._free(owed.slot, owed.request)
        record = self.by_id.get(request_id)
        if record is None or record.request is not owed.request:
            self._acknowledgements.forget_answer(request_id)
        elif record.end is not None:
            self._close(record)

    def cleared(self, _: str) -> None:
        """FastDeploy has thrown away the worker's tasks. What has a slot is answered by FastDeploy, which then says
        `finished`."""
        self._manager.post_result(DeviceLost("FastDeploy has cleared its engine"))
        self._flight = None
        for owed in self._acknowledgements.drop_all():
            if owed.request.request_id not in self.by_id:
                self._slots.free(owed.slot.slot, owed.request)

    # -- the turn ------------------------------------------------------------------------------------------------

    def turn(self) -> tuple[Any, list[tuple[str, str]]]:
        """One turn. Returns the tasks for the worker, and (request id, message) of requests that cannot be served."""
        self._tasks, self._errors = Tasks(), []
        while self._notes:
            what, request_id = self._notes.popleft()
            what(request_id)
        self._stop_all()
        self._manager.drain()
        self._carry(self._manager.take_effects())
        if self._may_launch():
            batch = self._manager.prefill_schedule() if self._role is Role.PREFILL else self._manager.schedule()
            self._carry(self._manager.take_effects())
            if batch is not None:
                self._flight = self._launch(batch)
                self._send(self._flight)
        return self._tasks.batch(), self._errors

    def _may_launch(self) -> bool:
        """Go on with the step in flight. Whether there is none any more."""
        flight = self._flight
        if flight is None:
            return True
        if self._send(flight):
            return False  # a chunk of this turn must come to the worker before its request can be given up
        if not flight.is_done():
            return False
        if self._stopping:  # they end before the step is answered: what is said of them there is void
            self._stop_all()
            self._manager.drain()
            self._carry(self._manager.take_effects())
        elif not flight.is_due(self._slack, others_wait=self._others_wait(flight)):
            return False
        self._flight = None
        self._carry(self._manager.update(flight.result()))
        return True

    def _others_wait(self, flight: Flight) -> bool:
        """Whether requests wait for the end of a step."""
        snapshot = self._manager.snapshot()
        return snapshot.num_waiting > 0 or snapshot.num_running != len(flight.rows)

    def _launch(self, batch: Batch) -> Flight:
        """Make a step of the core the one in flight."""
        for admission in batch.admissions:
            self._admit(admission)
        grown = self._apply_tables(batch)
        flight = Flight(batch.step_id, self._most, num_chunks=len(batch) - batch.num_decodes)
        rows = zip(
            *(batch.slots.tolist(), batch.positions.tolist(), batch.num_new_tokens.tolist(), batch.samples.tolist()),
            strict=True,
        )
        for i, (slot, position, count, samples) in enumerate(rows):
            record, decodes = self._by_slot[slot], i < batch.num_decodes
            if samples:
                flight.rows.append(Row(record, slot, decodes))
            if decodes and record.free:
                if slot in grown:
                    self._tasks.table(record)
                continue
            start = record.num_sent if decodes else position
            end = min(record.num_known, record.num_places) if decodes else position + count
            if end > start and (self._shares_blocks or not record.muted):
                flight.portions.append(Portion(record, start, end))
        return flight

    def _admit(self, admission: Admission) -> None:
        """A request has a slot of the core."""
        record = self.records[admission.request.uid]
        request = record.request
        record.slot, record.table, record.reserved = admission.slot, [], False
        record.num_sent = admission.num_cached_tokens
        record.num_told = len(admission.tokens) - len(record.core.prompt)
        self._by_slot[admission.slot] = record
        request.status = RequestStatus.RUNNING_PREFILL
        request.need_prefill_tokens = len(admission.tokens)
        request.num_computed_tokens = admission.num_cached_tokens
        if not request.has_been_preempted_before and self._role is not Role.DECODE:
            request.num_cached_tokens = admission.num_cached_tokens
            request.metrics.gpu_cache_token_num = admission.num_cached_tokens
        self._slots.seat(admission.slot, request)
        if record.request_id in self.early_aborts:
            del self.early_aborts[record.request_id]
            record.aborting = True
        if record.aborting:
            self._stop(record)

    def _apply_tables(self, batch: Batch) -> set[int]:
        """Write down the new blocks. Returns the slots whose tables have changed."""
        changed = zip(
            batch.table_slots.tolist(), batch.table_columns.tolist(), batch.table_blocks.tolist(), strict=True
        )
        grown = set()
        for slot, column, block in changed:
            table = self._by_slot[slot].table
            grown.add(slot)
            if column < len(table):
                table[column] = block - 1  # see `sizes`
            else:
                assert column == len(table)
                table.append(block - 1)
        for slot in grown:
            record = self._by_slot[slot]
            record.num_places = len(record.table) * self._manager.config.block_size
        return grown

    def _send(self, flight: Flight) -> bool:
        """Send the worker what it computes next; whether there was anything. A request whose former slot is still with
        the worker waits: tokens of it may be on their way."""
        if not flight.portions:
            return False
        budget = max(1, self._budget - sum(record.free for record in self._by_slot.values()))
        left: list[Portion] = []
        num_sent = 0
        for portion in flight.portions:
            record = portion.record
            if budget <= 0 or record.request_id in self._acknowledgements:
                left.append(portion)
                continue
            end = min(portion.end, portion.start + budget)
            budget -= end - portion.start
            num_sent += 1
            self._tasks.chunk(Portion(record, portion.start, end))
            record.heard, record.num_sent = True, end
            if end == record.num_known and not record.muted:
                record.free = True
                record.request.status = RequestStatus.RUNNING_DECODE
            if end < portion.end:
                left.append(Portion(record, end, portion.end))
        flight.portions = left
        return num_sent > 0

    # -- ends ----------------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        for record in list(self._stopping):
            self._stop(record)

    def _stop(self, record: Record) -> None:
        """End a request in the core, as soon as that is safe.

        - A client is answered by way of a slot: with the worker's -9. So a request without one gets its turn first.
        - A reservation of D is ended when P has written its last to the blocks.
        - The core counts on the chunks of the step in flight, as other requests may share their blocks.
        """
        self._stopping[record] = None
        waits_for_slot = record.slot is None and not record.answered
        if record.end is not None:
            del self._stopping[record]
            return
        if record.reserved or waits_for_slot:
            return
        record.muted = True
        flight = self._flight
        if flight is not None and not self._shares_blocks:
            flight.portions = [portion for portion in flight.portions if portion.record is not record]
        if record.slot is not None and record.request_id in self._acknowledgements:
            return
        if flight is not None and any(flight.portions_of(record)):
            return
        del self._stopping[record]
        if record.answered:
            self._manager.finish(record.core.uid)
        else:
            self._manager.abort(record.core.uid)

    def _carry(self, effects: Effects) -> None:
        """Carry out what the core says."""
        for sending in effects.sending:
            sender = self.records[sending.uid]
            sender.sending = True
            if sender.answered:  # FastDeploy was faster
                self._manager.send_done(sending.uid)
        ended: dict[int, Record] = {}
        for end in effects.ended:
            record = self.records.pop(end.uid, None)
            if record is not None:
                ended[end.uid] = record
                self._note_end(record, end)
        for slot in effects.quarantined:
            self._give_up(ended.get(slot.uid) or self.records[slot.uid], slot)
        for record in ended.values():
            if record.slot is not None:  # released by the result of a step
                self._by_slot.pop(record.slot, None)
                record.leave_slot()
            if record.answered or record.request_id not in self.by_id:
                self._close(record)
        for job in effects.jobs:
            self._prepare(self.records[job.uid])

    def _note_end(self, record: Record, end: RequestEnd) -> None:
        record.end = end.reason
        self._stopping.pop(record, None)
        if self._flight is not None:
            self._flight.portions = [portion for portion in self._flight.portions if portion.record is not record]
        if not record.answered and not self._slots.shows(record.request):  # FastDeploy answers what it finds in a slot
            self._errors.append((record.request_id, end.error or "the engine was cleared"))
            record.answered = True

    def _give_up(self, record: Record, slot: QuarantinedSlot) -> None:
        """A request has lost its slot, by its end or by preemption: the worker must give it back."""
        is_over, request_id = record.end is not None, record.request_id
        has_stopped = is_over and record.answered and record.free  # it has given its last token
        must_answer = is_over and record.aborting and not record.answered
        must_tell = must_answer or (not is_over and self._role is Role.DECODE)
        self._by_slot.pop(slot.slot, None)
        if has_stopped or not (record.heard or must_tell):
            self._free(slot, record.request)
        else:
            (self._tasks.abort if is_over else self._tasks.preempt)(slot.slot, request_id)
            self._acknowledgements.expect(request_id, Owed(slot, record.request, aborts=is_over))
        if not is_over:
            self._note_preemption(record)
        record.leave_slot()

    def _note_preemption(self, record: Record) -> None:
        """FastDeploy's D ends a request that is preempted: its engine answers the client when it sees the task."""
        request = record.request
        request.status = RequestStatus.PREEMPTED
        request.metrics.preempted_count += 1
        # FastDeploy notes the start of a request with its first chunk, unless this is set.
        request.has_been_preempted_before = request.has_been_preempted_before or record.heard
        request.num_computed_tokens = 0
        if self._role is Role.DECODE:
            record.answered = True
            self._stop(record)

    def _free(self, slot: QuarantinedSlot, request: Any) -> None:
        self._manager.slot_acknowledged(slot.slot, slot.generation)
        self._slots.free(slot.slot, request)

    def _close(self, record: Record) -> None:
        """Nothing more is to be done for a request, but for the worker's -9."""
        request_id = record.request_id
        if self.by_id.get(request_id) is record:
            del self.by_id[request_id]
        if self.requests.get(request_id) is record.request:
            del self.requests[request_id]
        if request_id not in self._acknowledgements:
            if record.request.idx is not None:
                self._slots.free(record.request.idx, record.request)
            self._acknowledgements.forget_answer(request_id)
