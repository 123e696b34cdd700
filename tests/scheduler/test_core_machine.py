"""The core under any order of messages, steps and failures, against a device that checks what it reads.

The model is small: of each request its whole answer, what it waits for, and whether something was done to it. After
every message all owners are audited (by the driver), every request has got a beginning of its own answer, and a request
that waits for something is told to. When the chaos stops every request must end, and a request that was not ended by
something done to it must have the answer that it would have got alone.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headway.config import Role, SchedulerConfig
from headway.errors import QueryError
from headway.request import FinishReason, Request, RequestStatus, Span
from headway.scheduler import (
    Audit,
    Clear,
    DropReservations,
    DynamicAllocation,
    Effects,
    HoldAdmissions,
    LiftHold,
    PreemptAll,
    PreprocessDone,
    PublishOutput,
    ReserveDecode,
    ReservePrefill,
    ResetPrefixCache,
    Resume,
    SendDone,
    SlotAcknowledged,
    StartDecode,
    StartPrefill,
    StaticAllocation,
    never_fits,
)
from headway.scheduler.state.leases import Holder
from headway.simulation.digests import EOS, answer_of
from tests.examples import examples
from tests.scheduler.driver import Driver, config

STEMS = ([3] * 12, [3] * 6 + [4] * 6, [9, 8, 7, 6, 5, 4, 3, 2])  # prefixes that prompts share
IMAGES = ((), (Span(1, 3, b"a", 3),), (Span(1, 3, b"b", 3), Span(5, 2, b"a", 2)), (Span(4, 4, b"c"),))
TAILS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def options() -> st.SearchStrategy[SchedulerConfig]:
    """Everything that can be chosen, small."""

    def make(speculative: int, extra_budget: int, **choices: object) -> SchedulerConfig:
        deterministic = 4 if choices["deterministic"] else 0
        budget = 4 * (1 + speculative) + deterministic + extra_budget
        return config(num_speculative_tokens=speculative, max_num_batched_tokens=budget, **choices)

    return st.builds(
        make,
        role=st.sampled_from(list(Role)),
        num_blocks=st.sampled_from((9, 12, 40)),
        extra_budget=st.sampled_from((0, 3, 28)),
        speculative=st.sampled_from((0, 0, 1, 3)),
        enable_prefix_caching=st.booleans(),
        enable_output_caching=st.booleans(),
        max_num_partial_prefills=st.sampled_from((0, 1)),
        long_prefill_token_threshold=st.sampled_from((None, 0, 5)),
        deterministic=st.booleans(),
        deterministic_chunk_size=st.just(4),
        encoder_cache_size=st.sampled_from((3, 6)),
        reserve=st.sampled_from(("ratio", "blocks", "none")),
        max_bypass=st.sampled_from((0, 2, 16)),
        ageing_seconds=st.sampled_from((0.0, 2.0)),
        victim=st.sampled_from(("least-waste", "last-in-line")),
        enable_priority_preemption=st.booleans(),
        preprocess_timeout=st.just(5.0),
        reservation_timeout=st.just(5.0),
        send_timeout=st.just(5.0),
        quarantine_slots=st.booleans(),
    )


class CoreMachine(RuleBasedStateMachine):
    @initialize(chosen=options(), depth=st.integers(1, 2), static=st.booleans())
    def start(self, chosen: SchedulerConfig, depth: int, static: bool) -> None:
        self.driver = Driver(chosen, StaticAllocation() if static else DynamicAllocation(), depth)
        self.role = chosen.role
        self.answers: dict[int, tuple[list[int], FinishReason]] = {}
        self.disturbed: set[int] = set()
        self.preparing: dict[int, Request] = {}
        self.reserved: dict[int, Request] = {}
        self.sending: set[int] = set()  # whose blocks are lent, whether they have ended or not
        self.awaited: dict[int, set[int]] = {}  # reply id -> steps that were in flight then

    # -- requests ------------------------------------------------------------------------------------------------

    def request(self, data: st.DataObject, prepare: bool = False) -> Request:
        draw = data.draw
        prompt = draw(st.sampled_from(STEMS)) + draw(TAILS)
        return self.driver.make(
            prompt,
            1 if self.role is Role.PREFILL else draw(st.integers(1, 14)),
            priority=draw(st.integers(0, 2)),
            cache_salt=draw(st.sampled_from((None, None, "s"))),
            reads_prefix_cache=draw(st.sampled_from((True, True, False))),
            stop_token_ids=(EOS, 17, 33) if draw(st.booleans()) else (),
            spans=draw(st.sampled_from(IMAGES)),
            preprocess=b"image" if prepare else None,
        )

    def expect(self, request: Request) -> None:
        self.answers[request.uid] = answer_of(request)

    @rule(
        data=st.data(),
        hows=st.lists(st.sampled_from(("plain", "reserve", "reserve", "prepare")), min_size=1, max_size=4),
    )
    def come(self, data: st.DataObject, hows: list[str]) -> None:
        for how in hows:
            request = self.request(data, prepare=how == "prepare")
            self.expect(request)
            if how == "reserve" and self.role is not Role.MIXED:
                self.reserve(request, data)
            elif how == "prepare":
                self.preparing[request.uid] = request
                self.note(self.driver.hand_in(request), set())
            else:
                self.note(self.driver.hand_in(request), self.hopeless(request))

    def hopeless(self, request: Request) -> set[int]:
        """Itself, if it can never be served: where the budget is small, an image may be too long for it."""
        return set() if never_fits(self.driver.config, request) is None else {request.uid}

    @precondition(lambda self: self.preparing)
    @rule(data=st.data(), outcome=st.sampled_from(("as it is", "longer", "failed")), tail=TAILS)
    def prepare(self, data: st.DataObject, outcome: str, tail: list[int]) -> None:
        uid = data.draw(st.sampled_from(sorted(self.preparing)))
        request = self.preparing.pop(uid)
        if outcome == "failed":
            self.note(self.driver.tell(PreprocessDone(uid, error="broken")), {uid})
        else:
            prompt = [*request.prompt.tolist(), *tail] if outcome == "longer" else None
            effects = self.driver.prepared(request, prompt, request.spans)
            made = self.driver.requests[uid]
            self.expect(made)
            self.note(effects, self.hopeless(made))

    @precondition(lambda self: self.driver.requests)
    @rule(data=st.data(), deed=st.sampled_from(("finish", "abort")))
    def end(self, data: st.DataObject, deed: str) -> None:
        uid = data.draw(st.sampled_from(sorted(self.driver.requests)))
        alive = {uid} & self.alive()
        self.note((self.driver.finish if deed == "finish" else self.driver.abort)(uid), alive)
        assert not alive & self.alive()

    @precondition(lambda self: self.driver.requests)
    @rule(data=st.data())
    def tell_what_is_harmless(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.driver.requests)))
        assert not self.driver.tell(PublishOutput((uid,)))
        if uid not in self.reserved:
            for message in (StartPrefill((uid,)), StartDecode(uid, 3), DropReservations((uid,))):
                assert not self.driver.tell(message)
        if uid not in self.preparing:
            assert not self.driver.tell(PreprocessDone(uid, error="late"))
        if uid not in self.sending:
            assert not self.driver.tell(SendDone(uid))

    # -- P and D -------------------------------------------------------------------------------------------------

    def reserve(self, request: Request, data: st.DataObject) -> None:
        snapshot, timeout = self.driver.core.snapshot(), data.draw(st.sampled_from((1.0, 5.0)))
        if self.hopeless(request):
            with pytest.raises(QueryError):
                self.driver.reserve(request, timeout)
        elif self.driver.reserve(request, timeout) is not None:
            assert not snapshot.paused and not snapshot.holds_admissions and not snapshot.num_waiting
            self.reserved[request.uid] = request
            if data.draw(st.booleans()):
                self.begin(self.reserved.pop(request.uid))
            return
        assert self.driver.core.snapshot() == snapshot

    @rule(data=st.data())
    def ask_the_wrong_role(self, data: st.DataObject) -> None:
        request, snapshot = self.request(data), self.driver.core.snapshot()
        for query, role in ((ReservePrefill(0, request), Role.PREFILL), (ReserveDecode(0, request, 1.0), Role.DECODE)):
            if role is not self.role:
                with pytest.raises(QueryError):
                    self.driver.core.ask(query)
        assert self.driver.core.snapshot() == snapshot

    @precondition(lambda self: self.reserved)
    @rule(data=st.data(), deed=st.sampled_from(("start", "start", "drop")))
    def take_up(self, data: st.DataObject, deed: str) -> None:
        uid = data.draw(st.sampled_from(sorted(self.reserved)))
        request = self.reserved.pop(uid)
        if deed == "drop":
            self.note(self.driver.tell(DropReservations((uid,))), {uid})
        else:
            self.begin(request)

    def begin(self, request: Request) -> None:
        if self.role is Role.PREFILL:
            self.driver.start_prefill(request.uid)
        else:
            self.driver.start_decode(request)

    @precondition(lambda self: self.driver.stopped)
    @rule(data=st.data())
    def connector_stops(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.driver.stopped)))
        reservation = self.driver.reservations[uid]
        self.driver.device.scribble(reservation.blocks, reservation.num_cached_tokens)
        assert not self.driver.receive_done(self.driver.requests[uid], error="stopped")

    @precondition(lambda self: self.sending)
    @rule(data=st.data(), error=st.sampled_from((None, None, "D is gone")))
    def sent(self, data: st.DataObject, error: str | None) -> None:
        uid = data.draw(st.sampled_from(sorted(self.sending)))
        self.note(self.driver.sent(uid, error), {uid} if error else set())
        self.sending.discard(uid)
        assert uid not in self.alive()

    # -- steps and time ------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.driver.in_flight) < self.driver.depth)
    @rule()
    def launch(self) -> None:
        held, seated = self.driver.core.snapshot().holds_admissions, self.seated()
        assert self.driver.launch() is None or not self.driver.core.snapshot().paused
        assert not held or self.seated() <= seated

    @precondition(lambda self: self.driver.in_flight)
    @rule()
    def answer(self) -> None:
        self.driver.answer()

    @rule(count=st.integers(1, 12))
    def go_on(self, count: int) -> None:
        for _ in range(count):
            self.driver.step()

    @precondition(lambda self: self.alive())
    @rule(count=st.integers(1, 5))
    def go_on_a_little(self, count: int) -> None:
        self.go_on(count)

    @precondition(lambda self: self.driver.in_flight)
    @rule()
    def fail(self) -> None:
        alive = self.alive()
        self.note(self.driver.answer(error="boom"), alive)

    @rule(seconds=st.sampled_from((0.5, 3.0, 6.0)))
    def wait(self, seconds: float) -> None:
        alive = self.alive()
        self.note(self.driver.wait(seconds), alive & (self.preparing.keys() | self.reserved.keys() | self.sending))
        deadline = self.driver.core.next_deadline
        assert deadline is None or deadline > self.driver.now

    # -- what befalls all at once --------------------------------------------------------------------------------

    @rule(what=st.sampled_from(("device", "clear", "pause", "pause", "pause", "pause")), data=st.data())
    def calamity(self, what: str, data: st.DataObject) -> None:
        alive = self.alive()
        if what == "device":
            queued = {uid for uid in alive if self.status(uid) in (RequestStatus.WAITING, RequestStatus.PREEMPTED)}
            self.note(self.driver.lose_device(), alive - queued - self.preparing.keys())
            assert queued | self.preparing.keys() == self.alive()
        elif what == "clear":
            self.note(self.driver.tell(Clear()), alive)
            assert not self.alive() and not len(self.driver.state.prefix)
        else:
            mode, reset = data.draw(st.sampled_from(("abort", "preempt", "preempt"))), data.draw(st.booleans())
            ends = alive if mode == "abort" else set(self.reserved) if reset else set()
            self.note(self.driver.pause(mode, reset=reset), ends)
            assert not ends & self.alive()

    @precondition(lambda self: self.driver.core.snapshot().paused)
    @rule()
    def resume(self) -> None:
        assert not self.driver.tell(Resume())

    @rule()
    def hold(self) -> None:
        assert not self.driver.tell(HoldAdmissions())

    @precondition(lambda self: self.driver.core.snapshot().holds_admissions)
    @rule()
    def lift(self) -> None:
        assert not self.driver.tell(LiftHold())

    @precondition(lambda self: self.driver.state.slots.num_quarantined)
    @rule(data=st.data(), back=st.sampled_from((0, 0, 1)))
    def acknowledge(self, data: st.DataObject, back: int) -> None:
        before = self.driver.core.snapshot().num_slots_quarantined
        waiting = data.draw(st.sampled_from(self.driver.state.slots.quarantined))
        assert not self.driver.tell(SlotAcknowledged(waiting.slot, waiting.generation - back))
        assert self.driver.core.snapshot().num_slots_quarantined == before - (not back)

    @rule(what=st.sampled_from(("preempt", "preempt", "reset", "audit", "await", "await")))
    def control(self, what: str) -> None:
        if what == "preempt":
            assert not self.driver.tell(PreemptAll())
        elif what == "reset":
            assert self.driver.ask(ResetPrefixCache) >= 0
            assert not len(self.driver.state.prefix)
        elif what == "audit":
            assert self.driver.ask(Audit).ok
        else:
            flying = {result.step_id for result in self.driver.in_flight}
            self.awaited[self.driver.await_steps()] = flying

    # -- what must hold ------------------------------------------------------------------------------------------

    def alive(self) -> set[int]:
        return self.driver.requests.keys() - self.driver.history.ends.keys()

    def seated(self) -> set[int]:
        return {entry.uid for entry in self.driver.state.occupants if entry is not None}

    def status(self, uid: int) -> RequestStatus:
        progress = self.driver.progress(self.driver.requests[uid])
        assert progress is not None
        return progress.status

    def note(self, effects: Effects, ends: set[int]) -> None:
        """Those and no others may have been ended by what was done, unless they came to their end by themselves."""
        for end in effects.ended:
            if (self.driver.history.tokens[end.uid], end.reason) != self.answers[end.uid]:
                assert end.uid in ends
                self.disturbed.add(end.uid)

    @invariant()
    def every_request_is_where_the_model_says(self) -> None:
        if not hasattr(self, "driver"):
            return
        alive = self.alive()
        self.preparing = {uid: request for uid, request in self.preparing.items() if uid in alive}
        self.reserved = {uid: request for uid, request in self.reserved.items() if uid in alive}
        leases = {uid for uid, lease in self.driver.state.leases.items() if lease.holder is Holder.SENDER}
        self.sending |= {uid for uid in leases if uid in self.driver.history.sent}
        assert leases == self.sending
        quarantined = {uid for uid, lease in self.driver.state.leases.items() if lease.holder is Holder.RECEIVER}
        assert quarantined == set(self.driver.stopped)
        waiting = self.driver.state.slots.quarantined
        assert all(self.driver.state.occupants[one.slot] is None for one in waiting)
        assert self.driver.config.quarantine_slots or not waiting
        snapshot = self.driver.core.snapshot()
        assert (snapshot.num_preparing, snapshot.num_reserved) == (len(self.preparing), len(self.reserved))
        assert snapshot.num_sending == len(self.sending & alive)
        assert snapshot.num_in_flight == len(self.driver.in_flight)
        for batch in self.driver.batches[-1:]:
            for admission in batch.admissions:
                brought = admission.request.uid in self.driver.reservations  # on D the KV of the prompt came from P
                assert admission.request.reads_prefix_cache or brought or not admission.num_cached_tokens
        for entry in self.driver.state.entries.values():
            known = self.driver.core.known_tokens(entry.uid)
            assert known is not None and not known.flags.writeable
            tokens = self.driver.history.tokens.get(entry.uid, [])
            assert known.tolist() == [*entry.request.prompt.tolist(), *tokens]
        for uid, tokens in self.driver.history.tokens.items():
            assert tokens == self.answers[uid][0][: len(tokens)]
        flying = {result.step_id for result in self.driver.in_flight}
        for reply, steps in self.awaited.items():
            assert (reply in self.driver.awaited) == (not steps & flying)

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        self.driver.tell(Resume())
        self.driver.tell(LiftHold())
        for request in self.preparing.values():
            self.note(self.driver.prepared(request), self.hopeless(request))
        for request in self.reserved.values():
            self.begin(request)
        for _ in range(40 * (1 + len(self.driver.requests))):  # tokens of the longest request, one after the other
            self.driver.step()
            self.driver.connectors_stop()
            for one in self.driver.state.slots.quarantined:
                self.driver.tell(SlotAcknowledged(one.slot, one.generation))
            for uid, _ in self.driver.state.leases.items():
                self.driver.sent(uid)
            if not self.alive() and not self.driver.in_flight:
                break
        self.driver.assert_empty()
        history = self.driver.history
        for uid in self.driver.requests.keys() - self.disturbed:
            assert (history.tokens[uid], history.ends[uid].reason) == self.answers[uid]


TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.settings = settings(examples(3), stateful_step_count=40)
