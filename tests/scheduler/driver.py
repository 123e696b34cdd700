"""Drives a core and an oracle device together, as a loop would, and keeps the history."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from headway.config import Role, SchedulerConfig
from headway.request import Request, Span, Transfer
from headway.sampling import SamplingParams
from headway.scheduler import (
    AbortRequests,
    AddRequest,
    Allocation,
    AwaitSteps,
    Batch,
    Command,
    DeviceLost,
    Effects,
    FinishRequests,
    GetProgress,
    Pause,
    Policies,
    PreprocessDone,
    Progress,
    Query,
    ReceiveDone,
    Reservation,
    ReserveDecode,
    ReservePrefill,
    Result,
    Scheduler,
    SendDone,
    StartDecode,
    StartPrefill,
    StepResult,
    Tick,
)
from headway.scheduler.effects import Lending, Pull
from headway.scheduler.state.state import State
from headway.simulation.device import OracleDevice
from headway.simulation.digests import Words, answer_of, prompt_of
from tests.history import History

_OF_REQUEST = (
    "priority",
    "cache_salt",
    "reads_prefix_cache",
    "stop_token_ids",
    "spans",
    "preprocess",
    "transfer",
    "arrival_time",
)


class Driver:
    """depth: steps in flight before the first of them must answer. now: the clock, seconds; `wait` moves it.

    requests: all that were handed in, or reserved with a yes; as they were prepared. held: what the blocks of a request
    held when they were lent to a sender, uint64 [num_tokens].
    reservations: that were answered with a yes. awaited: replies to `await_steps`, as they came.
    jobs: requests handed out to be prepared. pulls: by uid, handed out and not answered. lending, revoked: all there
    were.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        allocation: Allocation | None = None,
        depth: int = 1,
        policies: Policies | None = None,
    ) -> None:
        self.config = config
        self.core = Scheduler(config, allocation, policies)
        self.device = OracleDevice(config)
        self.depth = depth
        self.now = 0.0
        self.in_flight: deque[StepResult] = deque()
        self.history = History()
        self.requests: dict[int, Request] = {}
        self.held: dict[int, Words] = {}
        self.reservations: dict[int, Reservation] = {}
        self.awaited: list[int] = []
        self.jobs: list[Request] = []
        self.pulls: dict[int, Pull] = {}
        self.lending: list[Lending] = []
        self.revoked: list[int] = []
        self.batches: list[Batch] = []
        self.taken: tuple[int, ...] = ()  # uids told to be preempted since the last batch
        self._preemptions: dict[int, int] = {}  # by uid, at the last batch
        self._decodes: list[tuple[int, int]] = []  # slots and uids, in the last batch
        self._decode_set = 0
        self._last_uid = 0
        self._last_reply = 0

    @property
    def state(self) -> State:
        """The core's, for what only a look inside can tell."""
        return self.core._state

    @property
    def stopped(self) -> list[int]:
        """uids of pulls and reservations that are over, and whose blocks a connector may still write to."""
        return self.history.stopped

    # -- messages ------------------------------------------------------------------------------------------------

    def make(self, prompt: Sequence[int], max_tokens: int = 8, **options: object) -> Request:
        """A request that is not handed in. options: of SamplingParams, or of the request (_OF_REQUEST)."""
        self._last_uid += 1
        uid = self._last_uid
        own: dict[str, Any] = {key: options.pop(key) for key in _OF_REQUEST if key in options}
        own.setdefault("arrival_time", self.now)
        sampling = SamplingParams(max_tokens=max_tokens, **options)  # type: ignore[arg-type]
        return Request(
            uid=uid, request_id=f"r{uid}", prompt=prompt_of(prompt), sampling=sampling, max_tokens=max_tokens, **own
        )

    def add(self, prompt: Sequence[int], max_tokens: int = 8, **options: object) -> Request:
        """Hand in a request; see `make`."""
        request = self.make(prompt, max_tokens, **options)
        self.hand_in(request)
        return request

    def hand_in(self, request: Request) -> Effects:
        """Add a request that was made before."""
        self.requests[request.uid] = request
        return self.tell(AddRequest(request))

    def reserve(self, request: Request, timeout: float = 10.0, shows_blocks: bool = False) -> Reservation | None:
        """Ask for room on P or D. It counts as handed in only with a yes. timeout: of D's reservation. shows_blocks: of
        P's."""
        self._last_reply += 1
        prefill = self.config.role is Role.PREFILL
        reply = self._last_reply
        query = ReservePrefill(reply, request, shows_blocks) if prefill else ReserveDecode(reply, request, timeout)
        answer = self.core.ask(query, self.now)
        assert answer is None or isinstance(answer, Reservation)
        if answer is not None:
            self.requests[request.uid] = request
            self.reservations[request.uid] = answer
        self._check()
        return answer

    def start_prefill(self, *uids: int) -> Effects:
        """P: D has agreed."""
        return self.tell(StartPrefill(uids))

    def start_decode(self, request: Request) -> Effects:
        """D: the KV of the prompt is copied into the reserved blocks, once no step in flight may write there, and the
        first token follows."""
        reservation = self.reservations[request.uid]
        while self.in_flight and self.in_flight[0].step_id <= reservation.after_step:
            self.answer()
        self.device.receive(request, reservation.blocks, reservation.num_cached_tokens)
        return self.tell(StartDecode(request.uid, answer_of(request)[0][0]))

    def pull(self, prompt: Sequence[int], max_tokens: int = 8, **options: object) -> Request:
        """D: hand in a request whose KV comes from P."""
        return self.add(prompt, max_tokens, transfer=Transfer.PULL, **options)

    def lend(self, prompt: Sequence[int], **options: object) -> Request:
        """P: hand in a request whose KV is lent to D."""
        return self.add(prompt, 1, transfer=Transfer.LEND, **options)

    def write(self, request: Request) -> None:
        """D: the connector writes the KV of a pull."""
        pull = self.pulls[request.uid]
        self.device.receive(request, pull.blocks, pull.num_cached_tokens)

    def received(self, request: Request, *, with_token: bool = True) -> Effects:
        """D: all the KV of a pull is there, with P's token or without."""
        self.write(request)
        return self.receive_done(request, answer_of(request)[0][0] if with_token else None)

    def receive_done(self, request: Request, token: int | None = None, error: str | None = None) -> Effects:
        """D: the connector has stopped."""
        self.pulls.pop(request.uid, None)
        if request.uid in self.stopped:
            self.stopped.remove(request.uid)
        return self.tell(ReceiveDone(request.uid, token, error))

    def connectors_stop(self) -> None:
        """D: the connectors of pulls and reservations that have ended say that they have stopped."""
        for uid in list(self.stopped):
            assert not self.receive_done(self.requests[uid], error="not wanted any more")

    def sent(self, uid: int, error: str | None = None) -> Effects:
        """P: the sender is done. What it read must have been there all the time."""
        assert (self._read_sent(uid) == self.held[uid]).all(), "blocks were written to while they were lent"
        return self.tell(SendDone(uid, error))

    def prepared(self, request: Request, prompt: Sequence[int] | None = None, spans: Sequence[Span] = ()) -> Effects:
        """A preprocess job has ended well."""
        effects = self.tell(PreprocessDone(request.uid, None if prompt is None else prompt_of(prompt), tuple(spans)))
        self.requests[request.uid] = next((one for one in self.core.requests() if one.uid == request.uid), request)
        return effects

    def abort(self, *uids: int) -> Effects:
        return self.tell(AbortRequests(uids))

    def finish(self, *uids: int) -> Effects:
        return self.tell(FinishRequests(uids))

    def pause(self, mode: str = "preempt", *, reset: bool = False) -> Effects:
        return self.tell(Pause(abort=mode == "abort", reset_prefix_cache=reset))

    def lose_device(self) -> Effects:
        self.in_flight.clear()
        self.device.lose()
        self.held = {uid: self._read_sent(uid) for uid in self.held}
        return self.tell(DeviceLost("the device is gone"))

    def wait(self, seconds: float) -> Effects:
        """Let time pass, and tell the core if that brings a deadline about."""
        self.now += seconds
        deadline = self.core.next_deadline
        if deadline is None or deadline > self.now:
            return Effects()
        return self.tell(Tick())

    def ask(self, query: Callable[[int], Query]) -> Any:
        """The answer to a query that is answered at once."""
        self._last_reply += 1
        answer = self.core.ask(query(self._last_reply), self.now)
        self._check()
        return answer

    def await_steps(self) -> int:
        """Ask to hear when the steps in flight are over: `awaited` will have the reply id that is returned."""
        self._last_reply += 1
        reply = self._last_reply
        self.tell(AwaitSteps(reply))
        return reply

    def progress(self, request: Request) -> Progress | None:
        """How far a request is."""
        progress: Progress | None = self.ask(lambda reply: GetProgress(reply, request.uid))
        return progress

    def tell(self, message: Command | Result | Tick) -> Effects:
        """Apply a message now."""
        effects = self.core.apply(message, self.now)
        effects.pulls = self.core.take_pulls()
        return self.note(effects)

    # -- steps ---------------------------------------------------------------------------------------------------

    def launch(self) -> Batch | None:
        """Schedule one step and let the device compute it; its result is not applied yet."""
        prefill_only = self.config.role is Role.PREFILL
        batch = self.core.prefill_schedule() if prefill_only else self.core.schedule()
        if batch is not None:
            self._check_told(batch)
            self.batches.append(batch)
            self.in_flight.append(self.device.run(batch))
        self.note(Effects(pulls=self.core.take_pulls()))
        return batch

    def _check_told(self, batch: Batch) -> None:
        """What a batch tells of preemptions and of its decodes is what has happened since the batch before."""
        counts = {uid: entry.num_preemptions for uid, entry in self.state.entries.items()}
        more = {uid for uid, count in counts.items() if count > self._preemptions.get(uid, 0)}
        assert len(set(batch.preempted)) == len(batch.preempted)
        assert more - set(self.taken) <= set(batch.preempted) and counts.keys() & set(batch.preempted) <= more
        self._preemptions, self.taken = counts, ()
        decodes = [(slot, int(self.state.table.uid[slot])) for slot in batch.slots[: batch.num_decodes].tolist()]
        assert (batch.decode_set == self._decode_set) == (decodes == self._decodes)
        self._decodes, self._decode_set = decodes, batch.decode_set

    def take_preempted(self) -> tuple[int, ...]:
        """What the core tells before the next batch."""
        taken = self.core.take_preempted()
        self.taken += taken
        return taken

    def answer(self, error: str | None = None) -> Effects:
        """Apply the oldest result that is out, or a failure in its place."""
        result = self.in_flight.popleft()
        if error is None:
            self.device.done(result.step_id)
        else:
            self.device.spoil(result.step_id)
            result = StepResult(result.step_id, np.zeros(0, dtype=np.int32), error=error)
        return self.tell(result)

    def step(self) -> Batch | None:
        """Launch while there is room, then apply one result."""
        batch = None
        while len(self.in_flight) < self.depth and (launched := self.launch()) is not None:
            batch = launched
        if self.in_flight:
            self.answer()
        return batch

    def run(self, max_steps: int = 2000) -> None:
        """Go on until nothing is left that steps can do."""
        for _ in range(max_steps):
            if self.step() is None and not self.in_flight and not self.core.snapshot().has_work:
                return
        raise AssertionError(f"not finished after {max_steps} steps: {self.core.snapshot()}")

    # -- what was seen -------------------------------------------------------------------------------------------

    def note(self, effects: Effects) -> Effects:
        self.history.take(effects)
        for sending in effects.sending:
            self.held[sending.uid] = self.device.send(self.requests[sending.uid], sending.blocks, sending.num_tokens)
        for reply in effects.awaited:
            assert reply not in self.awaited, "answered twice"
            self.awaited.append(reply)
        self.jobs += effects.jobs
        self.pulls |= {pull.request.uid: pull for pull in effects.pulls}
        for lending in effects.lending:
            self.device.prompt_at(self.requests[lending.uid], lending.blocks, lending.num_tokens)
        self.lending += effects.lending
        self.revoked += effects.revoked
        self._check()
        return effects

    def ended(self, request: Request) -> str | None:
        """Why a request ended: the reason, and the message if there is one; None if it has not."""
        end = self.history.ends.get(request.uid)
        return None if end is None else f"{end.reason}: {end.error}" if end.error is not None else str(end.reason)

    def admissions(self) -> list[int]:
        """uids in the order of their admission, as the batches told it."""
        return [admission.request.uid for batch in self.batches for admission in batch.admissions]

    def assert_answered(self, *requests: Request) -> None:
        """These requests (all, if none is named) got the very answer they would have got alone."""
        for request in requests or self.requests.values():
            answer = self.history.tokens[request.uid], self.history.ends[request.uid].reason
            assert answer == answer_of(request)

    def assert_empty(self) -> None:
        """Nothing is held any more once the connectors have stopped, and nothing is waited for."""
        self.connectors_stop()
        snapshot = self.core.snapshot()
        assert (snapshot.num_running, snapshot.num_waiting, snapshot.num_in_flight) == (0, 0, 0)
        assert (snapshot.num_preparing, snapshot.num_reserved, snapshot.num_sending) == (0, 0, 0)
        assert (snapshot.num_receiving, snapshot.num_blocks_lent, snapshot.num_blocks_quarantined) == (0, 0, 0)
        assert snapshot.num_blocks_free + snapshot.num_blocks_evictable == snapshot.num_blocks_total
        assert self.core.slots.num_free_slots() == snapshot.num_slots and snapshot.num_slots_spanned == 0
        assert snapshot.num_requests_added == snapshot.num_requests_ended == len(self.requests)
        assert snapshot.next_deadline is None
        self._check()

    def _read_sent(self, uid: int) -> Words:
        """What the blocks hold now that are, or were, lent to the sender."""
        return self.device.read(self.history.sent[uid].blocks, len(self.held[uid]))

    def _check(self) -> None:
        """What holds at any time."""
        self.core.audit()
        self.state.encoder.audit(self.state.entries)
        snapshot = self.core.snapshot()
        assert self.requests.keys() >= self.history.ends.keys()
        alive = len(self.requests) - len(self.history.ends)
        by_state = (snapshot.num_running, snapshot.num_waiting, snapshot.num_preparing, snapshot.num_reserved)
        assert sum(by_state) + snapshot.num_sending + snapshot.num_receiving == alive == len(self.core.requests())


def config(**changes: object) -> SchedulerConfig:
    """A small scheduler."""
    options: dict[str, object] = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "max_model_len": 32,
        "block_size": 4,
        "num_blocks": 40,
    }
    return SchedulerConfig(**{**options, **changes})  # type: ignore[arg-type]


def busy(depth: int = 1, **changes: object) -> Driver:
    """Two that decode, one in the middle of its prompt, one that waits; as many steps in flight as may be."""
    driver = Driver(config(max_num_seqs=3, max_num_batched_tokens=8, **changes), depth=depth)
    driver.add([1, 2], max_tokens=12)
    driver.add([3, 4, 5], max_tokens=12)
    driver.step()
    driver.step()
    driver.add(range(20), max_tokens=5)
    driver.step()
    driver.add([6], max_tokens=5)
    while len(driver.in_flight) < depth and driver.launch() is not None:
        pass
    return driver
