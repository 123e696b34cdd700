"""One simulated run, event by event: the pure core, a device that knows the right KV, and the callers of both.

No threads, no clock, no random numbers: the same events take the same core through the same states.
"""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np

from headway.config import Role
from headway.request import FinishReason, RequestStatus
from headway.scheduler import (
    AbortRequests,
    AddRequest,
    Audit,
    AuditReport,
    Clear,
    DeviceLost,
    Effects,
    FinishRequests,
    GetProgress,
    HoldAdmissions,
    LiftHold,
    Pause,
    PreemptAll,
    PreprocessDone,
    Progress,
    PublishOutput,
    ResetPrefixCache,
    Resume,
    StepResult,
    Tick,
)
from headway.simulation.connector import Connector
from headway.simulation.decisions import Decisions
from headway.simulation.device import DeviceError, OracleDevice
from headway.simulation.digests import prompt_of
from headway.simulation.events import Event
from headway.simulation.history import Ends, Life, Violation, require
from headway.simulation.kv_ledger import KVLedger
from headway.simulation.partner import Partner
from headway.simulation.setting import Setting
from headway.simulation.shapes import Shape
from headway.simulation.watched import WatchedCore

ABORT, ERROR, STOP = FinishReason.ABORT, FinishReason.ERROR, FinishReason.STOP
NATURAL_ENDS = Ends(natural=True)
OF_THE_PARTNER = ("reserve", "start_prefill", "start_decode", "drop", "sent")
OF_THE_CONNECTOR = ("pull", "carry", "received", "lend", "consume", "renew", "release")
SLOW = 25  # events; a step that takes longer to answer is counted as slow
NO_TOKENS = np.zeros(0, dtype=np.int32)


class Flight(NamedTuple):
    """A step in flight. uids: requests with a row or an admission in it. encodes: whether it encodes images.
    since: number of events before its launch."""

    result: StepResult
    uids: frozenset[int]
    encodes: bool
    since: int


class Simulation:
    """A core, its device, its callers and its partner.

    partner: the other side of a P or D. answered: the last results that the core was told, and lost results.
    counts: how often each kind of event happened.

    make_connector: what moves KV. decisions: to add to; None: a digest of its own. changes_weights: whether a clear, a
    reset of the cache or a pause with a reset brings new weights.
    """

    def __init__(
        self,
        setting: Setting,
        make_connector: Callable[[Setting, WatchedCore, OracleDevice, Partner], KVLedger] = Connector,
        decisions: Decisions | None = None,
        changes_weights: bool = True,
    ) -> None:
        self.setting = setting
        self.config = setting.config
        self.role = setting.config.role
        self.core = WatchedCore(setting, self._tell_the_others, decisions)
        self.history = self.core.history
        self.device = OracleDevice(setting.config)
        self.partner = Partner(setting, self.core, self.device)
        self.connector = make_connector(setting, self.core, self.device, self.partner)
        self.in_flight: deque[Flight] = deque()
        self.answered: deque[StepResult] = deque(maxlen=4)
        self.counts: Counter[str] = Counter()
        self.num_events = 0
        self._slot_uids = [0] * setting.config.max_num_seqs
        self._seen: set[int] = set()  # uids that some batch has admitted
        self._resets_when_idle = False
        self._changes_weights = changes_weights

    def _happening(self, name: str) -> Callable[..., None]:
        if name in OF_THE_PARTNER:
            happening = getattr(self.partner, name)
        elif name in OF_THE_CONNECTOR:
            happening = getattr(self.connector, name)
        else:
            happening = getattr(self, f"_{name}")
        return cast("Callable[..., None]", happening)

    def _tell_the_others(self, effects: Effects) -> None:
        self.partner.after(effects)
        self.connector.after(effects)

    def happen(self, event: Event) -> None:
        """Carry out one event. Raises Violation if the core breaks any rule."""
        self.num_events += 1
        self.counts[event.name] += 1
        try:
            self._happening(event.name)(*event.args)
        except Violation:
            raise
        except Exception as error:
            raise violation_of(error) from error

    # -- the device ----------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        if len(self.in_flight) >= self.setting.depth:
            return
        before = self.core.snapshot
        batch = self.core.schedule()
        if batch is None:
            if self.core.snapshot == before:
                self._check_idle()
            return
        result = self.device.run(batch)
        newcomers = [admission.request.uid for admission in batch.admissions]
        for admission in batch.admissions:
            self._slot_uids[admission.slot] = admission.request.uid
            self.partner.arrived.pop(admission.request.uid, None)
        self._seen.update(newcomers)
        uids = frozenset([*newcomers, *(self._slot_uids[slot] for slot in batch.slots.tolist())])
        self.in_flight.append(Flight(result, uids, bool(batch.encode), self.num_events))
        self.counts["batches"] += 1
        if result.counts is not None:
            self.counts["decodes without a token"] += int((result.counts == 0).sum())
            self.counts["decodes of several tokens"] += int((result.counts > 1).sum())

    def _check_idle(self) -> None:
        """After a pass without a batch and with nothing in flight, no request may run, or wait without a cause."""
        now = self.core.snapshot
        if self.in_flight or now.paused:
            return
        if now.num_running:
            raise Violation("stuck", f"{now.num_running} requests run, and there is no step: {now}")
        waits_for_others = now.num_reserved or self.partner.leases or self.connector.holds_any
        if now.num_waiting and not waits_for_others and not self.core.held and not self.core.quarantine.slots:
            raise Violation("stuck", f"{now.num_waiting} requests wait, and no request holds anything: {now}")

    def _answer(self, outcome: int) -> None:
        if not self.in_flight:
            return
        result, uids, _, since = self.in_flight.popleft()
        self.counts["slow steps"] += self.num_events - since > SLOW
        step_id, tokens, ends = result.step_id, result.tokens, NATURAL_ENDS
        self.core.step_over(step_id)
        if outcome == 0:
            self.device.done(step_id)
            for uid in uids & self.history.live.keys():
                self.history.live[uid].computes_again = False
        else:
            self.device.spoil(step_id)
            again = [uid for uid, life in self.history.live.items() if life.sent_back]
            ends = Ends(may=dict.fromkeys([*uids, *again], ERROR))
            if outcome == 1:
                result = StepResult(step_id, NO_TOKENS, error="the step failed")
            else:
                few = outcome == 2 and len(tokens)
                result = replace(result, tokens=tokens[:-1] if few else np.append(tokens, np.int32(7)))
            self.counts["failed steps" if outcome == 1 else "wrong token counts"] += 1
        self.answered.append(result)
        before = self._preemptions() if outcome else {}
        self.core.tell(result, ends)
        if outcome:
            self._note_sent_back(before)
        self._reset_if_idle()

    def _preemptions(self) -> dict[int, int]:
        """How often each living request was preempted."""
        answers = {uid: self.core.scheduler.ask(GetProgress(0, uid), self.core.now) for uid in self.history.live}
        return {uid: answer.num_preemptions for uid, answer in answers.items() if isinstance(answer, Progress)}

    def _note_sent_back(self, before: dict[int, int]) -> None:
        """A failed step may send a request back to the queue, but not again before it has computed anything."""
        for uid, num_preemptions in self._preemptions().items():
            if num_preemptions > before[uid]:
                life = self.history.live[uid]
                require(not life.computes_again, "sent back for ever", f"request {uid}")
                life.sent_back = life.computes_again = True
                self.counts["sent back by a failed step"] += 1

    def _repeat(self, back: int) -> None:
        if self.answered:
            self.core.tell_in_vain(self.answered[-1 - back % len(self.answered)])

    def _stray(self, step: int) -> None:
        step_id = self.core.snapshot.step_id + 1 + step
        self.core.tell_in_vain(StepResult(step_id, np.zeros(step % 3, dtype=np.int32)))

    def _lose(self) -> None:
        self.device.lose()
        for flight in self.in_flight:
            self.core.step_over(flight.result.step_id)
            self.answered.append(flight.result)  # the result may still come, too late
        self.counts["lost steps"] += len(self.in_flight)
        self.in_flight.clear()
        self.partner.device_lost()
        may = dict.fromkeys(self.history.live, ERROR)
        if self.role is not Role.PREFILL:  # there a request may have a slot before its first batch
            known = self._seen | self.partner.reserved_uids | self.connector.answered
            may = {uid: ERROR for uid in may if uid in known}
        self.core.tell(DeviceLost("the device was lost"), Ends(may=may))
        self._check_revoked()
        self._reset_if_idle()

    def _acknowledge(self, slot: int, back: int) -> None:
        self.core.acknowledge(slot, back)

    # -- requests ------------------------------------------------------------------------------------------------

    def _add(self, *args: int) -> None:
        shape = Shape(*args)
        if shape.uid in self.history.ended:
            return  # uids are never used twice
        request = shape.request(self.core.now)
        if shape.uid in self.history.live:
            self.core.refuses(AddRequest(request), ValueError)
            return
        life = Life(shape, request)
        self.history.accept(life)
        if shape.prepare:
            life.preparing, life.deadline = True, self.core.now + self.config.preprocess_timeout
            self.core.tell(AddRequest(request))
            require(life.has_job, "not prepared", f"request {shape.uid}")
        else:
            self.core.tell(AddRequest(request), self.core.expect(life, request))

    def _abort(self, *uids: int) -> None:
        self.core.tell(AbortRequests(uids), self.core.must_end(uids, ABORT))

    def _finish(self, *uids: int) -> None:
        self.core.tell(FinishRequests(uids), self.core.must_end(uids, STOP))

    def _look(self, *uids: int) -> None:
        self.core.look(uids)

    def _publish(self, *uids: int) -> None:
        self.core.tell(PublishOutput(uids))

    def _prepared(self, uid: int, outcome: int) -> None:
        life = self.history.live.get(uid)
        if life is None or not life.preparing:
            self.core.tell_in_vain(PreprocessDone(uid, error="too late" if outcome == 2 else None))
            return
        life.preparing, life.deadline = False, None
        if outcome == 2:
            message = PreprocessDone(uid, error="the image is broken")
            self.core.tell(message, self.core.must_end([uid], ERROR))
            return
        request, message = life.request, PreprocessDone(uid)
        if outcome:
            tokens, spans = life.shape.prepared(more=5 if outcome == 1 else self.config.max_model_len)
            max_tokens = min(request.max_tokens, self.config.max_model_len - len(tokens))
            request = replace(request, prompt=prompt_of(tokens), spans=spans, max_tokens=max_tokens)
            message = PreprocessDone(uid, request.prompt, spans)
        self.core.tell(message, self.core.expect(life, request))

    # -- control -------------------------------------------------------------------------------------------------

    def _pause(self, abort: int, reset: int) -> None:
        self.core.paused = True
        self._resets_when_idle |= bool(reset)
        over = list(self.history.live) if abort else list(self.partner.reservations) if reset else []
        self.core.tell(Pause(bool(abort), bool(reset)), self.core.must_end(over, ABORT))
        if reset:
            require(not self.connector.receiving, "not given up", f"{self.connector.receiving}")
            self._check_revoked()
        self._forget_claims()
        self._check_preempted()
        self._reset_if_idle()

    def _check_revoked(self) -> None:
        """What is lent is gone, or out of date."""
        require(not self.connector.lent, "not revoked", f"leases {list(self.connector.lent)}")

    def _resume(self) -> None:
        if self._resets_when_idle:  # a resume does not wait for steps in flight, which end with the old weights
            self._change_weights()
        self.core.paused = False
        self.core.tell(Resume())

    def _hold(self) -> None:
        self.core.held = True
        self.core.tell(HoldAdmissions())

    def _lift_hold(self) -> None:
        self.core.held = False
        self.core.tell(LiftHold())

    def _preempt_all(self) -> None:
        self.core.tell(PreemptAll())
        self._forget_claims()
        if self.role is not Role.PREFILL:  # a prefill engine admits them again at once
            self._check_preempted()

    def _check_preempted(self) -> None:
        """Only requests with a last step in flight may still run."""
        running, last = self.core.snapshot.num_running, len(self._in_flight_holders())
        require(running <= last, "not preempted", f"{running} requests run, {last} of them in flight")

    def _clear(self) -> None:
        self.core.tell(Clear(), self.core.must_end(list(self.history.live), ABORT))
        self._check_revoked()
        self._new_weights()

    def _reset_cache(self) -> None:
        holders = [*self.partner.reservations, *self.partner.arrived, *self._in_flight_holders()]
        holders += self.connector.receiving
        # On P a request may have a slot before its first batch. What is lent is looked at between two batches.
        for uid, life in list(self.history.live.items()):
            if self.role is Role.PREFILL or life.request.transfer is not None:
                holders += [uid] if self._progress_of(uid).status in _WITH_SLOT else []
        num_cached = self.core.ask(ResetPrefixCache)
        require(isinstance(num_cached, int) and num_cached >= 0, "bad answer", f"{num_cached} blocks were cached")
        self._new_weights(holders)

    def _reset_if_idle(self) -> None:
        """A pause with a cache reset is for new weights. They come when no step is in flight any more."""
        if self._resets_when_idle and not self.in_flight:
            self._change_weights()

    def _change_weights(self) -> None:
        """No request may go on with cached blocks. Steps in flight may, and requests whose whole KV came from P."""
        self._resets_when_idle = False
        arrived = [uid for uid, num_cached in self.partner.arrived.items() if not num_cached]
        self._new_weights([*arrived, *self._in_flight_holders()])

    def _new_weights(self, holders: Iterable[int] = ()) -> None:
        if self._changes_weights:
            self.device.change_weights(holders)

    def _in_flight_holders(self) -> set[int]:
        """Requests with rows in flight that hold blocks. A request that was preempted meanwhile holds none."""
        uids = {uid for flight in self.in_flight for uid in flight.uids if uid in self.history.live}
        return {uid for uid in uids if self._progress_of(uid).status not in _QUEUED}

    def _forget_claims(self) -> None:
        """Running requests have released their blocks, and start again with the weights of that time. Exception:
        requests with a last step in flight."""
        self.partner.arrived.clear()
        reserved = self.partner.reservations.keys() | self.connector.receiving
        self.device.keep_only(reserved | self._in_flight_holders())

    # -- reads and the clock -------------------------------------------------------------------------------------

    def _progress(self, uid: int) -> None:
        life = self.history.live.get(uid)
        if life is None:
            progress = self.core.ask(lambda reply: GetProgress(reply, uid))
            require(progress is None, "bad answer", f"request {uid} has ended, and got to {progress}")
            return
        got = self._progress_of(uid)
        waits = {
            RequestStatus.PREPARING: life.preparing,
            RequestStatus.RESERVED: life.reserved,
            RequestStatus.SENDING: life.sending,
        }
        told = got.num_output_tokens == life.num_tokens and all((got.status is s) == w for s, w in waits.items())
        if not told:
            raise Violation("bad answer", f"request {uid}, {life.num_tokens} tokens and {waits}, got to {got}")

    def _progress_of(self, uid: int) -> Progress:
        progress = self.core.ask(lambda reply: GetProgress(reply, uid))
        if not isinstance(progress, Progress) or progress.uid != uid:
            raise Violation("bad answer", f"request {uid} is alive, and got to {progress}")
        return progress

    def _audit(self) -> None:
        report = self.core.ask(Audit)
        require(isinstance(report, AuditReport) and report.ok, "bad answer", f"the audit says {report}")

    def _await_steps(self) -> None:
        self.core.await_steps()

    def _wait(self, ms: int) -> None:
        self.core.now += ms / 1000
        nearest = self.check_deadline()
        if nearest is not None and nearest <= self.core.now:
            self._tick()

    def check_deadline(self) -> float | None:
        """The time of the next deadline, in seconds; the core must know the same."""
        deadlines = [life.deadline for life in self.history.live.values() if life.deadline is not None]
        deadlines += [one.until for one in self.connector.lent.values()]
        nearest, told = min(deadlines, default=None), self.core.snapshot.next_deadline
        require(told == nearest, "wrong deadline", f"{told}, expected {nearest}")
        return nearest

    def _tick(self) -> None:
        live, now = self.history.live.items(), self.core.now
        due = [uid for uid, life in live if life.deadline is not None and life.deadline <= now]
        self.counts["timeouts"] += len(due)
        late = [uid for uid in due if uid in self.connector.receiving]  # their prompts are computed here
        self.core.tell(Tick(), self.core.must_end([uid for uid in due if uid not in late], ERROR))
        left = [uid for uid in late if uid in self.connector.receiving]
        left += [uid for uid, one in self.connector.lent.items() if one.until <= now]
        require(not left, "outlives its deadline", f"{left}")


def violation_of(error: Exception) -> Violation:
    """An error that comes of the code under test: the rule that it breaks."""
    if isinstance(error, DeviceError):
        return Violation(error.rule, str(error))
    where = traceback.extract_tb(error.__traceback__)[-1]
    return Violation(f"{type(error).__name__} in {where.name}", str(error))


_WITH_SLOT = (RequestStatus.RESERVED, RequestStatus.RUNNING_PREFILL)
_QUEUED = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
