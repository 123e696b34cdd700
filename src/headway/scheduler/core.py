"""The scheduler: messages in, effects out; batches in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from headway.config import Role, SchedulerConfig
from headway.request import FinishReason, Request, RequestStatus
from headway.scheduler.audit import Auditor, AuditReport
from headway.scheduler.batch import Batch, StepResult
from headway.scheduler.effects import Answer, Effects
from headway.scheduler.fitting import never_fits
from headway.scheduler.handlers.control import Control
from headway.scheduler.handlers.reservations import Reservations
from headway.scheduler.handlers.results import Results
from headway.scheduler.messages import (
    AbortRequests,
    AddRequest,
    Audit,
    AwaitSteps,
    Clear,
    DeviceLost,
    DropReservations,
    FinishRequests,
    GetProgress,
    Message,
    Pause,
    PreemptAll,
    PreprocessDone,
    PublishOutput,
    ReserveDecode,
    ReservePrefill,
    ResetPrefixCache,
    Resume,
    SendDone,
    StartDecode,
    StartPrefill,
    Tick,
)
from headway.scheduler.passes.admissions import Admissions
from headway.scheduler.passes.chunk_plan import ChunkPlan
from headway.scheduler.passes.decode_rows import DecodeRows
from headway.scheduler.passes.displacement import Displacement
from headway.scheduler.passes.growth import NO_PLACES, DecodePlaces, Growth
from headway.scheduler.passes.steps import Chunk, Steps
from headway.scheduler.policies.allocation import Allocation
from headway.scheduler.policies.policies import Policies
from headway.scheduler.snapshot import Snapshot
from headway.scheduler.state.slot_pool import SlotPool
from headway.scheduler.state.state import State

_TIMED_OUT = {
    RequestStatus.PREPARING: "its preparation took longer than preprocess_timeout",
    RequestStatus.RESERVED: "its reservation was not taken up in time",
    RequestStatus.SENDING: "its KV was not sent within send_timeout",
}


class Scheduler:
    """Decides, step by step, what runs. See the package's docstring for how it is driven.

    One caller at a time: whoever owns it is the writer.

    policies: the rules to go by; None takes those that the configuration names.
    """

    def __init__(
        self, config: SchedulerConfig, allocation: Allocation | None = None, policies: Policies | None = None
    ) -> None:
        self.config = config
        self._policies = policies or Policies.of(config, allocation)
        self._state = State(config, self._policies.line)
        self._auditor = Auditor(self._state)
        self._admissions = Admissions(self._state, self._policies)
        self._displacement = Displacement(self._state, self._admissions, self._policies)
        self._growth = Growth(self._state, self._policies)
        self._steps = Steps(self._state, self._admissions)
        self._control = Control(self._state, self._steps)
        self._reservations = Reservations(self._state, self._admissions, self._steps)
        self._results = Results(self._state, self._steps, self._reservations)
        control, reservations = self._control, self._reservations
        self._handlers: dict[type, Callable[[Any, float, Effects], None]] = {
            AddRequest: self._add,
            FinishRequests: lambda message, now, effects: self._end_all(message.uids, FinishReason.STOP, effects),
            AbortRequests: lambda message, now, effects: self._end_all(message.uids, FinishReason.ABORT, effects),
            PublishOutput: self._publish_output,
            StartPrefill: lambda message, now, effects: reservations.start_prefill(message, effects),
            StartDecode: lambda message, now, effects: reservations.start_decode(message, effects),
            DropReservations: lambda message, now, effects: reservations.drop(message, effects),
            PreemptAll: lambda message, now, effects: control.preempt_all(),
            Clear: lambda message, now, effects: control.clear(effects),
            Pause: lambda message, now, effects: control.pause(message, effects),
            Resume: lambda message, now, effects: control.resume(),
            Tick: self._tick,
            ReservePrefill: reservations.reserve_prefill,
            ReserveDecode: reservations.reserve_decode,
            AwaitSteps: lambda message, now, effects: control.await_steps(message, effects),
            ResetPrefixCache: lambda message, now, effects: control.reset_prefix_cache(message, effects),
            GetProgress: self._progress,
            Audit: lambda message, now, effects: effects.answers.append(Answer(message.reply, self.audit_report())),
            StepResult: self._step_done,
            DeviceLost: self._device_lost,
            PreprocessDone: self._prepared,
            SendDone: lambda message, now, effects: reservations.send_done(message, effects),
        }

    # -- messages ------------------------------------------------------------------------------------------------

    def apply(self, message: Message, now: float = 0.0) -> Effects:
        """Carry out one message. It is applied whole, or it raises and nothing has changed.

        Raises QueryError for a query that cannot be answered here.
        """
        effects = Effects()
        self._handlers[type(message)](message, now, effects)
        if self.config.role is Role.PREFILL and not self._state.paused:  # whose pass allocates nothing
            self._admissions.admit_all()
        return effects

    def _add(self, message: AddRequest, now: float, effects: Effects) -> None:
        state, request = self._state, message.request
        if request.uid in state.entries:
            raise ValueError(f"uid {request.uid} of request {request.request_id!r} is in use")
        if request.preprocess is not None:
            state.accept(request, RequestStatus.PREPARING)
            state.deadlines.set(request.uid, now + self.config.preprocess_timeout)
            effects.jobs.append(request)
            return
        entry = state.accept(request, RequestStatus.WAITING)
        reason = never_fits(self.config, request)
        if reason is not None:
            effects.ended.append(state.end(entry, FinishReason.ERROR, message=reason))

    def _prepared(self, message: PreprocessDone, now: float, effects: Effects) -> None:
        state = self._state
        entry = state.entries.get(message.uid)
        if entry is None or entry.status is not RequestStatus.PREPARING:
            return  # it has ended, or this is told twice
        error, request = message.error, entry.request
        if error is not None:
            error = f"its preparation failed: {error}"
        elif message.prompt is not None:
            room = self.config.max_model_len - len(message.prompt)
            max_tokens = max(1, min(request.max_tokens, room))  # if 1 is too many, that is told with both numbers
            request = replace(request, prompt=message.prompt, spans=message.spans, max_tokens=max_tokens)
        if error is None:
            error = never_fits(self.config, request)
        if error is not None:
            effects.ended.append(state.end(entry, FinishReason.ERROR, message=error))
        else:
            state.prepared(entry, request)

    def _end_all(self, uids: Iterable[int], reason: FinishReason, effects: Effects) -> None:
        entries = {uid: entry for uid in uids if (entry := self._state.entries.get(uid)) is not None}
        effects.ended += self._state.end_all(entries.values(), reason)

    def _publish_output(self, message: PublishOutput, now: float, effects: Effects) -> None:
        state = self._state
        for uid in message.uids:
            entry = state.entries.get(uid)
            if entry is not None and entry.status is RequestStatus.RUNNING_DECODE:
                state.publish(entry, state.num_confirmed_tokens(entry) >> state.block_shift)

    def _tick(self, message: Tick, now: float, effects: Effects) -> None:
        state = self._state
        for uid in state.deadlines.expired(now):
            entry = state.entries[uid]
            effects.ended.append(state.end(entry, FinishReason.ERROR, message=_TIMED_OUT[entry.status]))

    def _progress(self, message: GetProgress, now: float, effects: Effects) -> None:
        entry = self._state.entries.get(message.uid)
        effects.answers.append(Answer(message.reply, None if entry is None else self._state.progress(entry)))

    def _step_done(self, result: StepResult, now: float, effects: Effects) -> None:
        step = self._steps.in_flight.pop(result.step_id, None)
        if step is None:
            return  # given up before, or told twice
        effects.started = self._admissions.take_started()
        self._results.apply(step, result, now, effects)
        self._auditor.after_step()
        self._control.steps_answered(effects)

    def _device_lost(self, message: DeviceLost, now: float, effects: Effects) -> None:
        state = self._state
        self._steps.in_flight.clear()
        seated = [entry for entry in state.occupants if entry is not None]
        sending = [entry for uid in state.leases if (entry := state.entries.get(uid)) is not None]
        effects.ended += state.end_all(seated + sending, FinishReason.ERROR, message=message.reason)
        state.encoder.clear()
        state.prefix.clear()  # its blocks held KV that is gone
        self._control.steps_answered(effects)

    # -- passes --------------------------------------------------------------------------------------------------

    def schedule(self) -> Batch | None:
        """The next step: all decodes, then prefill chunks, then newcomers, within `max_num_batched_tokens`.

        None when there is nothing to compute. A pass ends no request: what is admitted can be served to its end.
        """
        if self._state.paused:
            return None
        state, config = self._state, self.config
        if config.enable_priority_preemption and len(state.waiting):
            self._displacement.make_room()
        num_preemptions = state.counters.preemptions
        places = self._growth.make_room()
        decodes = self._growth.rows()
        budget = config.max_num_batched_tokens - len(decodes) * config.tokens_per_decode
        admits = num_preemptions == state.counters.preemptions  # else a newcomer would take the blocks just won
        chunks = self._next_chunks(budget, decodes if admits else None)
        return self._launch(decodes, places, chunks)

    def prefill_schedule(self) -> Batch | None:
        """The pass of a prefill instance: running prefills alone, the whole budget, no waiting queue, no allocation.

        A request got slot and blocks when its message was applied, or when enough of them were given back.
        """
        if self._state.paused:
            return None
        chunks = self._next_chunks(self.config.max_num_batched_tokens, None)
        return self._launch(DecodeRows.none(self._state.table), NO_PLACES, chunks)

    def _next_chunks(self, budget: int, decodes: DecodeRows | None) -> list[Chunk]:
        """The chunks of the running prefills, then, unless `decodes` is None, of newcomers.

        What they compute counts as scheduled from here on.
        """
        state, table = self._state, self._state.table
        if not state.prefilling and (decodes is None or not len(state.waiting)):
            return []
        plan = ChunkPlan(self.config, state.encoder, budget)
        for entry in state.prefilling:
            plan.offer(entry.request, entry.slot, int(table.num_computed[entry.slot]), len(entry.tokens))
        if decodes is not None and len(state.waiting):
            self._admissions.admit(plan, decodes.rows)
        plan.top_up()
        chunks = []
        for slot, count in plan.counts.items():
            entry = state.occupant(slot)
            assert entry.handle is not None
            start = int(table.num_computed[slot])
            completes = start + count == len(entry.tokens)
            table.num_computed[slot] = start + count
            chunks.append(Chunk(entry, entry.handle, start, count, completes))
            if completes:
                state.complete_prefill(entry)
        return chunks

    def _launch(self, decodes: DecodeRows, places: DecodePlaces, chunks: list[Chunk]) -> Batch | None:
        batch = self._steps.launch(decodes, places, chunks)
        if batch is not None:
            self._policies.reserve.step_launched()
        return batch

    # -- reads, for the owner only -------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The state in numbers, O(1)."""
        state, counts, counters = self._state, self._state.pool.counts, self._state.counters
        # In the order of RequestStatus; looking its members up would double what a snapshot costs.
        _, prefilling, decoding, _, _, preparing, reserved, sending = state.population
        return Snapshot(
            step_id=self._steps.last_id,
            num_running=prefilling + decoding,
            num_waiting=len(state.waiting),
            num_preparing=preparing,
            num_reserved=reserved,
            num_sending=sending,
            num_in_flight=len(self._steps.in_flight),
            num_slots=self.config.max_num_seqs,
            num_slots_spanned=state.slots.num_spanned,
            num_blocks_total=self.config.num_blocks - 1,
            num_blocks_free=counts.free,
            num_blocks_evictable=counts.evictable,
            paused=self._state.paused,
            next_deadline=state.deadlines.next,
            num_requests_added=counters.requests_added,
            num_requests_ended=counters.requests_ended,
            num_preemptions=counters.preemptions,
            num_prompt_tokens=counters.prompt_tokens,
            num_generation_tokens=counters.generation_tokens,
            num_prefix_query_tokens=counters.prefix_query_tokens,
            num_prefix_hit_tokens=counters.prefix_hit_tokens,
        )

    @property
    def next_deadline(self) -> float | None:
        """When `Tick` is due; None if never."""
        return self._state.deadlines.next

    def requests(self) -> list[Request]:
        """All requests that have not ended."""
        return [entry.request for entry in self._state.entries.values()]

    @property
    def slots(self) -> SlotPool:
        """Who gets which slot."""
        return self._state.slots

    def audit_report(self) -> AuditReport:
        """Full recount of who owns what, O(slots + blocks)."""
        return self._auditor.report()

    def audit(self) -> None:
        """Full recount. Raises OwnershipError, naming each owner, if anything is lost or owned twice."""
        self._auditor.check()
