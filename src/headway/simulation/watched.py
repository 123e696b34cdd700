"""The core under observation: after each message its effects and its state are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from headway.config import Role
from headway.request import FinishReason, Request, Transfer
from headway.scheduler import (
    AwaitSteps,
    Batch,
    Command,
    DeviceLost,
    DynamicAllocation,
    Effects,
    Query,
    Result,
    Scheduler,
    SlotAcknowledged,
    StaticAllocation,
    StepResult,
    Tick,
)
from headway.simulation.decisions import Decisions
from headway.simulation.history import Ends, History, Life, Violation, require
from headway.simulation.quarantine import Quarantine
from headway.simulation.setting import Setting

NO_ENDS = Ends()


class WatchedCore:
    """A scheduler, and the knowledge of its callers.

    now: seconds. told_at: seconds; the time that the core knows.
    paused, held (admissions), in_flight (step ids), quarantine: the core must have the same.
    decisions: digest of every batch and effect so far; equal for equal runs.
    after: called with the effects of every message and pass, after they are checked.
    """

    def __init__(self, setting: Setting, after: Callable[[Effects], None], decisions: Decisions | None = None) -> None:
        self.scheduler = Scheduler(setting.config, StaticAllocation() if setting.static else DynamicAllocation())
        self.history = History()
        self._config = setting.config
        self.now = self.told_at = 0.0
        self.paused = self.held = False
        self.quarantine = Quarantine(is_on=setting.config.quarantine_slots)
        self.in_flight: set[int] = set()
        self.snapshot = self.scheduler.snapshot()
        self.num_messages = 0
        self.decisions = decisions or Decisions()
        self._schedule = (
            self.scheduler.prefill_schedule if setting.config.role is Role.PREFILL else self.scheduler.schedule
        )
        self._audits = setting.audits
        self._after = after
        self._last_reply = 0
        self._seated: dict[int, int] = {}  # uids by slot, as the batches tell it
        self._decodes: list[tuple[int, int | None]] = []  # slots and uids, in the last batch
        self._decode_set = 0  # in the last batch
        self._num_told = 0  # preemptions
        self._awaiting: dict[int, set[int]] = {}  # reply id -> steps whose results it waits for

    def tell(self, message: Command | Result | Tick, ends: Ends = NO_ENDS) -> None:
        """Apply a message. ends: which requests it may end, or must."""
        self.num_messages += 1
        self.told_at = self.now
        if isinstance(message, DeviceLost):
            self.quarantine.end_all()
        effects = self.scheduler.apply(message, self.now)
        self._note(effects, ends, by_step=isinstance(message, StepResult | DeviceLost))

    def tell_in_vain(self, message: Command | Result) -> None:
        """A message that means nothing here: nothing may happen."""
        before = self.snapshot
        self.num_messages += 1
        self.told_at = self.now
        effects = self.scheduler.apply(message, self.now)
        if effects:
            raise Violation("something of nothing", f"{type(message).__name__} has effects: {effects}")
        self._note(effects, NO_ENDS)
        # A prefill engine admits after each message, and the last pass may have given back blocks: other requests had
        # computed what these were for.
        admits = self._config.role is Role.PREFILL and self.snapshot.num_waiting < before.num_waiting
        same = admits or self.snapshot == before
        require(same, "something of nothing", f"{type(message).__name__} changed the state")

    def look(self, uids: Iterable[int]) -> None:
        """Check the reads of the scheduler's owner: they must list these requests if they live, and change nothing."""
        before, known = self.snapshot, {request.uid for request in self.scheduler.requests()}
        strange = [uid for uid in uids if (uid in known) != (uid in self.history.live)]
        require(not strange, "not told of", f"requests {strange} live here or there alone")
        require(self.scheduler.audit_report().ok, "audit", "a read found a problem")
        self._note(Effects(), NO_ENDS)
        require(self.snapshot == before, "something of nothing", "a read changed the state")

    def refuses(self, message: Command | Query, error: type[Exception]) -> None:
        """A message that must be refused with this error, and change nothing."""
        before = self.snapshot
        self.num_messages += 1
        answer: object = None
        self.told_at = self.now
        try:
            if isinstance(message, Query):
                answer = self.scheduler.ask(message, self.now)
            else:
                answer = self.scheduler.apply(message, self.now)
        except error:
            pass
        else:
            raise Violation("not refused", f"{type(message).__name__} should raise {error.__name__}: {answer}")
        self._note(Effects(), NO_ENDS)
        require(self.snapshot == before, "refused, but", f"{type(message).__name__} changed the state")

    def ask(self, query: Callable[[int], Query], accept: Callable[[object], None] | None = None) -> object:
        """The answer to a query that is answered at once.

        query: makes the message from a reply id. accept: called with the answer, before the state of the core is
            checked.
        """
        message = query(self._new_reply())
        self.num_messages += 1
        self.told_at = self.now
        answer = self.scheduler.ask(message, self.now)
        if accept is not None:
            accept(answer)
        self.history.answered(message.reply)
        self.decisions.take_answer(message.reply, answer)
        self._note(Effects(), NO_ENDS)
        return answer

    def acknowledge(self, slot: int, back: int) -> None:
        """The device has done with the former request of a slot; with the request before it, if `back` is not 0. In
        vain, if the slot does not wait for that."""
        waiting = self.quarantine.slots.get(slot)
        if waiting is None or back:
            latest = self.quarantine.former_generation(slot) if waiting is None else waiting.generation
            self.tell_in_vain(SlotAcknowledged(slot, latest - back))
            return
        self.quarantine.end(slot)
        self.tell(SlotAcknowledged(slot, waiting.generation))

    def await_steps(self) -> None:
        """To be answered when all that is in flight now is."""
        reply = self._new_reply()
        self._awaiting[reply] = set(self.in_flight)
        self.tell(AwaitSteps(reply))

    def schedule(self) -> Batch | None:
        """Run a pass. It must end no request: every accepted request can be served."""
        batch = self._schedule()
        num_waiting = self.scheduler.snapshot().num_waiting
        require(not self.held or num_waiting >= self.snapshot.num_waiting, "held", f"{num_waiting} requests wait")
        effects = Effects()
        self._note_quarantines(effects)
        if batch is not None:
            require(not self.paused, "a step while paused", f"step {batch.step_id}")
            self._check_told(batch)
            self.in_flight.add(batch.step_id)
            self.decisions.take_batch(batch)
        self._note(effects, NO_ENDS)
        return batch

    def _check_told(self, batch: Batch) -> None:
        """What a batch tells of preemptions and of its decodes, against what the batches before have told."""
        self.quarantine.check_batch(batch, self._seated)
        live, num_preemptions = self.history.live, self.scheduler.snapshot().num_preemptions
        self._num_told += len(batch.preempted)
        require(self._num_told <= num_preemptions, "preempted", f"{self._num_told} told of {num_preemptions}")
        seated = {slot: uid for slot, uid in self._seated.items() if uid in live and uid not in batch.preempted}
        for admission in batch.admissions:
            uid = admission.request.uid
            require(uid not in seated.values(), "preempted", f"it was not told of {uid}, which comes again")
            seated[admission.slot] = uid
        decodes = [(slot, seated.get(slot)) for slot in batch.slots[: batch.num_decodes].tolist()]
        same = batch.decode_set == self._decode_set
        require(same == (decodes == self._decodes), "decode set", f"step {batch.step_id}: same {same}, {decodes}")
        self._seated, self._decodes, self._decode_set = seated, decodes, batch.decode_set

    def step_over(self, step_id: int) -> None:
        """A step is in flight no more: its result will be told next, or is lost."""
        self.in_flight.discard(step_id)
        for steps in self._awaiting.values():
            steps.discard(step_id)

    def must_end(self, uids: Iterable[int], reason: FinishReason) -> Ends:
        """Those of these requests that live must end now."""
        return Ends(must={uid: reason for uid in uids if uid in self.history.live})

    def can_serve(self, request: Request) -> bool:
        """Whether the request fits an empty engine, as a whole and image by image."""
        config = self._config
        return (
            len(request.prompt) > 0 < request.max_tokens
            and len(request.prompt) + request.max_tokens <= config.max_model_len
            and all(span.length <= config.smallest_chunk_budget for span in request.spans)
            and all(span.num_encoder_tokens <= config.encoder_budget for span in request.spans)
        )

    def expect(self, life: Life, request: Request) -> Ends:
        """Expect the answer to `request`. If it never fits, it must end at once."""
        if not self.can_serve(request):
            return self.must_end([request.uid], FinishReason.ERROR)
        only_prefill = self._config.role is Role.PREFILL or request.transfer is Transfer.LEND
        life.expect(request, num_tokens=1 if only_prefill else None)
        return NO_ENDS

    def _new_reply(self) -> int:
        self._last_reply += 1
        self.history.ask(self._last_reply)
        return self._last_reply

    def _note(self, effects: Effects, ends: Ends, *, by_step: bool = False) -> None:
        effects.pulls = self.scheduler.take_pulls()
        effects.kv_events = self.scheduler.take_kv_events()
        self._note_quarantines(effects)
        self.quarantine.check_ended(effects, self._seated, by_step=by_step)
        sent = {sending.uid for sending in effects.sending}  # they have no slot any more
        self._seated = {slot: uid for slot, uid in self._seated.items() if uid not in sent} if sent else self._seated
        self.history.note(effects, ends)
        self.decisions.take_effects(effects)
        for reply in effects.awaited:
            steps = self._awaiting.pop(reply, None)
            require(not steps, "answered too early", f"reply {reply} waits for steps {steps}")
        forgotten = [reply for reply, steps in self._awaiting.items() if not steps]
        require(not forgotten, "not answered", f"replies {forgotten} wait for no step any more")
        self._after(effects)
        self._check()

    def _note_quarantines(self, effects: Effects) -> None:
        told = self.scheduler.take_quarantined()
        self.quarantine.begin(told)
        effects.quarantined += told

    def _check(self) -> None:
        """Check the rules that hold at any time."""
        if self._audits:
            self.scheduler.audit()
        self.snapshot = now = self.scheduler.snapshot()
        num_live = len(self.history.live)
        by_state = now.num_running + now.num_waiting + now.num_preparing + now.num_reserved + now.num_sending
        by_state += now.num_receiving
        counted = by_state == num_live == now.num_requests_added - now.num_requests_ended
        counted &= now.num_slots_quarantined == len(self.quarantine.slots) and now.holds_admissions == self.held
        with_slot = now.num_running + now.num_reserved + now.num_receiving + now.num_slots_quarantined
        spanned = with_slot <= now.num_slots_spanned <= now.num_slots
        if not counted or not spanned or now.num_in_flight != len(self.in_flight) or now.paused != self.paused:
            known = f"{num_live} requests live, {len(self.in_flight)} steps in flight, paused: {self.paused}"
            raise Violation("miscounted", f"{known}; {now}")
