"""The scheduler: messages in, effects out; queries answered; batches in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headway.config import SchedulerConfig
from headway.kvcache import KVEvent
from headway.request import FinishReason, Request
from headway.scheduler.audit import Auditor, AuditReport
from headway.scheduler.batch import Batch, IntArray, StepResult
from headway.scheduler.effects import Effects, Pull
from headway.scheduler.handlers.clock import Clock
from headway.scheduler.handlers.control import Control
from headway.scheduler.handlers.requests import Requests
from headway.scheduler.handlers.reservations import Reservations
from headway.scheduler.handlers.results import Results
from headway.scheduler.handlers.transfers import Transfers
from headway.scheduler.messages import (
    AbortRequests,
    AddRequest,
    Audit,
    AwaitSteps,
    Clear,
    Command,
    ConsumeLease,
    DeviceLost,
    DropReservations,
    FinishRequests,
    GetProgress,
    HoldAdmissions,
    LeasesEnded,
    LeasesRenewed,
    LiftHold,
    Pause,
    PreemptAll,
    PreprocessDone,
    PublishOutput,
    Query,
    ReceiveDone,
    ReserveDecode,
    ReservePrefill,
    ResetPrefixCache,
    Result,
    Resume,
    SendDone,
    SlotAcknowledged,
    StartDecode,
    StartPrefill,
    Tick,
)
from headway.scheduler.passes.admissions import Admissions
from headway.scheduler.passes.chunk_plan import ChunkPlan
from headway.scheduler.passes.decode_rows import DecodeRows
from headway.scheduler.passes.displacement import Displacement
from headway.scheduler.passes.growth import NO_PLACES, DecodePlaces, Growth
from headway.scheduler.passes.sharing import Sharing
from headway.scheduler.passes.steps import Chunk, Steps
from headway.scheduler.policies.allocation import Allocation
from headway.scheduler.policies.policies import Policies
from headway.scheduler.snapshot import Snapshot
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.slot_pool import QuarantinedSlot, SlotPool
from headway.scheduler.state.state import State


class Scheduler:
    """Decides, step by step, what runs. See the package's docstring for how it is driven.

    One caller at a time: the writer, which owns it.

    policies: the rules to go by; None takes the rules that the configuration names.
    """

    def __init__(
        self, config: SchedulerConfig, allocation: Allocation | None = None, policies: Policies | None = None
    ) -> None:
        self.config = config
        self._policies = policies or Policies.of(config, allocation)
        self._state = state = State(config)
        self._moves = moves = Moves(state, self._policies.line.rank, self._policies.reserve.left)
        self._auditor = auditor = Auditor(state)
        self._sharing = sharing = Sharing(state, moves)
        self._admissions = admissions = Admissions(state, moves, self._policies, sharing)
        self._displacement = Displacement(state, moves, admissions, self._policies)
        self._growth = Growth(state, moves, self._policies)
        self._steps = steps = Steps(state, moves, admissions, sharing)
        transfers = Transfers(state, moves, admissions)
        self._control = control = Control(state, moves, transfers)
        requests, clock = Requests(state, moves), Clock(state, moves, transfers)
        reservations = Reservations(state, moves, admissions, transfers)
        results = Results(state, moves, admissions, steps, reservations, transfers, auditor)
        self._handlers: dict[type, Callable[[Any, float, Effects], None]] = {
            AddRequest: requests.add,
            FinishRequests: lambda message, _now, effects: requests.end(message.uids, FinishReason.STOP, effects),
            AbortRequests: lambda message, _now, effects: requests.end(message.uids, FinishReason.ABORT, effects),
            PublishOutput: lambda message, _now, _effects: requests.publish_output(message.uids),
            StartPrefill: lambda message, _now, _effects: reservations.start_prefill(message),
            StartDecode: lambda message, _now, effects: reservations.start_decode(message, effects),
            DropReservations: lambda message, _now, effects: reservations.drop(message, effects),
            PreemptAll: lambda _message, _now, _effects: control.preempt_all(),
            Clear: lambda _message, _now, effects: control.clear(effects),
            Pause: lambda message, _now, effects: control.pause(message, effects),
            Resume: lambda _message, _now, _effects: control.resume(),
            HoldAdmissions: lambda _message, _now, _effects: control.hold_admissions(True),
            LiftHold: lambda _message, _now, _effects: control.hold_admissions(False),
            AwaitSteps: lambda message, _now, effects: results.await_steps(message.reply, effects),
            Tick: lambda _message, now, effects: clock.tick(now, effects),
            StepResult: results.step_done,
            DeviceLost: lambda message, _now, effects: results.device_lost(message, effects),
            PreprocessDone: lambda message, _now, effects: requests.prepared(message, effects),
            SendDone: lambda message, _now, effects: reservations.send_done(message, effects),
            ReceiveDone: lambda message, _now, effects: transfers.receive_done(message, effects),
            LeasesRenewed: lambda message, now, _effects: transfers.renew(message, now),
            LeasesEnded: lambda message, _now, _effects: transfers.end_leases(message),
            SlotAcknowledged: lambda message, _now, _effects: state.slots.acknowledge(message.slot, message.generation),
        }
        self._answers: dict[type, Callable[[Any, float], object]] = {
            ReservePrefill: reservations.reserve_prefill,
            ReserveDecode: reservations.reserve_decode,
            ConsumeLease: lambda query, _now: transfers.consume(query),
            ResetPrefixCache: lambda _query, _now: state.reset_prefix_cache(),
            GetProgress: lambda query, _now: requests.progress(query.uid),
            Audit: lambda _query, _now: auditor.report(),
        }

    # -- messages ------------------------------------------------------------------------------------------------

    def apply(self, message: Command | Result | Tick, now: float = 0.0) -> Effects:
        """Carry out one message. It is applied whole, or it raises and nothing has changed. now: seconds."""
        effects = Effects()
        self._state.now = now
        self._handlers[type(message)](message, now, effects)
        self._admit_on_prefill_engine()
        if self._state.stopped_pulls:
            effects.stopped_pulls, self._state.stopped_pulls = self._state.stopped_pulls, []
        return effects

    def ask(self, query: Query, now: float = 0.0) -> object:
        """The answer to a query; its type stands with the query. now: seconds.

        Raises QueryError for a query that cannot be answered here; nothing has changed then.
        """
        self._state.now = now
        answer = self._answers[type(query)](query, now)
        self._admit_on_prefill_engine()
        return answer

    def _admit_on_prefill_engine(self) -> None:
        """A pass of a prefill engine allocates nothing: slots and blocks are given out after each message."""
        if self._state.only_prefills and not self._state.paused and not self._state.holds_admissions:
            self._admissions.admit_all()

    # -- passes --------------------------------------------------------------------------------------------------

    def schedule(self) -> Batch | None:
        """The next step: all decodes, then prefill chunks, then newcomers, within `max_num_batched_tokens`.

        None when there is nothing to compute, and with `num_speculative_tokens` while a step with decodes is in flight.
        A pass ends no request: each admitted request can be served to its end.
        """
        if self._state.paused or self._steps.awaits_drafts:
            return None
        state, config = self._state, self.config
        if config.enable_priority_preemption and len(state.waiting) and not state.holds_admissions:
            self._displacement.make_room()
        num_preemptions = state.counters.preemptions
        places = self._growth.make_room()
        decodes = self._growth.rows()
        budget = config.max_num_batched_tokens - len(decodes) * config.tokens_per_decode
        # After a preemption a newcomer would take the blocks just won.
        admits = num_preemptions == state.counters.preemptions and not state.holds_admissions
        chunks = self._next_chunks(budget, decodes if admits else None)
        return self._launch(decodes, places, chunks)

    def take_pulls(self) -> list[Pull]:
        """The pulls that may begin since the last call. To be asked for after every message and pass."""
        oldest = min(self._steps.in_flight, default=self._state.last_step + 1)
        return self._admissions.take_pulls(oldest)

    def take_quarantined(self) -> list[QuarantinedSlot]:
        """The slots that were given up since the last call and wait for `SlotAcknowledged`. To be asked for after every
        message, query and pass. Empty without `quarantine_slots`. If no batch has told the device of the former
        request, the slot can be acknowledged at once."""
        return self._state.slots.take_quarantined()

    def take_kv_events(self) -> list[KVEvent]:
        """What messages, queries and passes have done to the prefix cache since the last call, in order. Empty without
        `keeps_kv_events`."""
        return self._state.prefix.take_events()

    def prefill_schedule(self) -> Batch | None:
        """The pass of a prefill engine: running prefills alone, the whole budget, no waiting queue, no allocation.

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
            if self._sharing.catch_up(entry):
                start = int(table.num_computed[entry.slot])
                count = plan.offer(entry.request, entry.slot, start, len(entry.tokens))
                if count:
                    self._sharing.announce(entry, start + count)
        if decodes is not None and len(state.waiting):
            self._admissions.admit(plan, decodes.rows)
        for slot in plan.top_up(self._sharing.is_announced):
            self._sharing.announce(state.occupant(slot), int(table.num_computed[slot]) + plan.counts[slot])
        chunks = []
        for slot, count in plan.counts.items():
            entry = state.occupant(slot)
            assert entry.handle is not None
            start = int(table.num_computed[slot])
            completes = self._moves.compute_chunk(entry, start + count)
            announced = self._sharing.take_announced(entry)
            chunks.append(Chunk(entry, entry.handle, start, count, completes, announced))
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
        _, prefilling, decoding, _, _, preparing, reserved, sending, receiving, _ = state.population
        return Snapshot(
            step_id=state.last_step,
            num_running=prefilling + decoding,
            num_waiting=len(state.waiting),
            num_preparing=preparing,
            num_reserved=reserved,
            num_sending=sending,
            num_receiving=receiving,
            num_blocks_lent=state.leases.num_lent,
            num_blocks_quarantined=state.leases.num_quarantined,
            num_leases_unclaimed=state.leases.num_unclaimed,
            num_leases_claimed=state.leases.num_claimed,
            num_slots_quarantined=state.slots.num_quarantined,
            num_in_flight=len(self._steps.in_flight),
            num_slots=self.config.max_num_seqs,
            num_slots_spanned=state.slots.num_spanned,
            num_blocks_total=self.config.num_blocks - 1,
            num_blocks_free=counts.free,
            num_blocks_evictable=counts.evictable,
            paused=state.paused,
            holds_admissions=state.holds_admissions,
            next_deadline=state.deadlines.next,
            num_requests_added=counters.requests_added,
            num_requests_ended=counters.requests_ended,
            num_preemptions=counters.preemptions,
            num_prompt_tokens=counters.prompt_tokens,
            num_prefill_tokens=counters.prefill_tokens,
            num_generation_tokens=counters.generation_tokens,
            num_prefix_queries=counters.prefix_queries,
            num_prefix_query_tokens=counters.prefix_query_tokens,
            num_prefix_hit_tokens=counters.prefix_hit_tokens,
            num_resumed_queries=counters.resumed_queries,
            num_resumed_query_tokens=counters.resumed_query_tokens,
            num_resumed_hit_tokens=counters.resumed_hit_tokens,
            num_received_tokens=counters.received_tokens,
            num_lost_pulls=counters.lost_pulls,
            num_leases_consumed=counters.leases_consumed,
            num_leases_released=counters.leases_released,
            num_leases_expired=counters.leases_expired,
            num_leases_revoked=counters.leases_revoked,
        )

    @property
    def next_deadline(self) -> float | None:
        """When `Tick` is due; None if never."""
        return self._state.deadlines.next

    def requests(self) -> list[Request]:
        """All requests that have not ended."""
        return [entry.request for entry in self._state.entries.values()]

    def known_tokens(self, uid: int) -> IntArray | None:
        """Prompt and confirmed output of a request, int32, read-only; what is in flight is not known. None if there is
        no such request. O(tokens)."""
        entry = self._state.entries.get(uid)
        return None if entry is None else self._state.known_tokens(entry)

    def take_preempted(self) -> tuple[int, ...]:
        """uids of the requests that were preempted since the last batch or the last call, as in `Batch.preempted`. For
        an owner that must know it before there is a next batch: a message preempts too, and so may a pass without a
        batch. What is taken here is not in the next batch."""
        return self._state.take_preempted()

    @property
    def slots(self) -> SlotPool:
        """Which slots are free."""
        return self._state.slots

    def audit_report(self) -> AuditReport:
        """Full recount of slots, blocks and their owners, O(slots + blocks)."""
        return self._auditor.report()

    def audit(self) -> None:
        """Full recount. Raises OwnershipError, naming each owner, if anything is lost or owned twice."""
        self._auditor.check()
