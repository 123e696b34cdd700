"""A manager, a device that notices foreign KV, sender and receiver of KV, and a history; by hand, in any order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from headway.config import Role
from headway.errors import EnginePausedError, QueueFullError
from headway.managers import Manager
from headway.request import FinishReason, Request
from headway.sampling import SamplingParams
from headway.scheduler import DeviceLost, PreprocessDone, Reservation, Sending, StepResult
from headway.scheduler.effects import Lending, Pull
from headway.simulation.device import OracleDevice
from headway.simulation.digests import answer_of
from tests.history import History
from tests.managers.driving import Asking, T, asking, assert_nothing_held, make, make_request


class World:
    """What can happen, one thing at a time. Ops that make no sense at the moment do nothing."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.device = OracleDevice(manager.config)
        self.history = History()
        self.requests: dict[str, Request] = {}  # those that were accepted, by request id
        self.reservations: dict[str, Reservation] = {}
        self.in_flight: deque[StepResult] = deque()
        self.jobs: list[Request] = []
        self.sending: dict[str, Sending] = {}
        self.pulls: dict[int, Pull] = {}  # handed out and not answered, by uid
        self.lent: dict[int, Lending] = {}  # leases that no word has ended, by uid
        self.asked: list[Asking[Any]] = []
        is_p = manager.config.role is Role.PREFILL
        self._pass = manager.prefill_schedule if is_p else manager.schedule

    # -- callers -------------------------------------------------------------------------------------------------

    def make(self, request_id: str, prompt: Sequence[int], max_tokens: int = 8, **options: Any) -> Request:
        return make_request(self.manager, request_id, prompt, SamplingParams(max_tokens=max_tokens), **options)

    def add(self, request_id: str, prompt: Sequence[int], max_tokens: int = 8, **options: Any) -> bool:
        """False: it was refused for now."""
        request = self.make(request_id, prompt, max_tokens, **options)
        try:
            self.manager.add(request)
        except (EnginePausedError, QueueFullError):
            return False
        self.requests[request_id] = request
        return True

    def uid(self, request_id: str) -> int:
        return self.requests[request_id].uid

    def ask(self, question: Callable[[], T]) -> Asking[T]:
        """Have it asked; it has been handed in when this returns."""
        one = asking(self.manager, question)
        self.asked.append(one)
        return one

    def reserve(self, request_id: str, prompt: Sequence[int], max_tokens: int = 8) -> Asking[Reservation | None]:
        """Reserve slot and blocks, on P or on D."""
        manager, request = self.manager, self.make(request_id, prompt, max_tokens)
        is_p = manager.config.role is Role.PREFILL
        reserve = manager.reserve_prefill if is_p else manager.reserve_decode

        def question() -> Reservation | None:
            reservation = reserve(request)
            if reservation is not None:
                self.requests[request_id] = request
                self.reservations[request_id] = reservation
            return reservation

        return self.ask(question)

    def connectors_stop(self) -> None:
        """Connectors of reservations that are over write no more."""
        while self.history.stopped:
            uid = self.history.stopped.pop(0)
            self.pulls.pop(uid, None)
            self.manager.receive_done(uid, error="not wanted any more")

    def pulled(self, *, with_token: bool = True, error: str | None = None) -> None:
        """The oldest pull is over: all is there, or nothing."""
        if not self.pulls:
            return
        uid, pull = next(iter(self.pulls.items()))
        del self.pulls[uid]
        if uid in self.history.stopped:
            self.history.stopped.remove(uid)
            error = "not wanted any more"
        if error is None:
            self.device.receive(pull.request, pull.blocks, pull.num_cached_tokens)
        self.manager.receive_done(uid, answer_of(pull.request)[0][0] if with_token and error is None else None, error)

    def consume(self) -> None:
        """D asks for the oldest lease."""
        if self.lent:
            uid = next(iter(self.lent))
            lending = self.lent.pop(uid)
            self.ask(lambda: self.manager.consume_lease(uid, lending.generation))

    def receive(self, request_id: str) -> None:
        """The KV of a reserved request comes in, and its first token."""
        request = self.requests[request_id]
        entry = self.manager._core._state.entries.get(request.uid)
        if entry is not None and entry.handle is not None:  # else the blocks are no longer its own
            reservation = self.reservations[request_id]
            self.device.receive(request, reservation.blocks, reservation.num_cached_tokens)
        self.manager.start_decode(request_id, answer_of(request)[0][0])

    # -- device, jobs, sender ------------------------------------------------------------------------------------

    def launch(self) -> None:
        """A pass, and what it makes goes to the device, up to two steps."""
        if len(self.in_flight) < 2:
            batch = self._pass()
            self._take_in()
            if batch is not None:
                self.in_flight.append(self.device.run(batch))

    def post(self, error: str | None = None) -> None:
        """The device answers for its oldest step."""
        if self.in_flight:
            result = self.in_flight.popleft()
            if error is None:
                self.device.done(result.step_id)
            else:
                self.device.spoil(result.step_id)
                result = StepResult(result.step_id, np.zeros(0, np.int32), error=error)
            self.manager.post_result(result)

    def lose_device(self) -> None:
        self.in_flight.clear()
        self.device.lose()
        self.manager.post_result(DeviceLost("the device is gone"))

    def prepare(self, error: str | None = None) -> None:
        """The oldest job ends."""
        if self.jobs:
            request = self.jobs.pop(0)
            self.manager.post_result(PreprocessDone(request.uid, error=error))

    def send(self, request_id: str = "", error: str | None = None) -> None:
        """D has the KV of this request (of any, if none is named), or will not get it."""
        if not request_id and self.sending:
            request_id = next(iter(self.sending))
        sending = self.sending.pop(request_id, None)
        if sending is not None:
            self.device.send(self.requests[request_id], sending.blocks, sending.num_tokens)
            self.manager.send_done(sending.uid, error)

    # -- the loop ------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Apply what was handed in, write down what came of it, recount."""
        self.manager.drain()
        self._take_in()

    def _take_in(self) -> None:
        effects = self.manager.take_effects()
        self.jobs += effects.jobs
        self.sending |= {sending.request_id: sending for sending in effects.sending}
        self.pulls |= {pull.request.uid: pull for pull in effects.pulls}
        self.lent |= {lending.uid: lending for lending in effects.lending if lending.token is not None}
        for uid in effects.revoked:
            self.lent.pop(uid, None)
        self.history.take(effects)
        self.manager._core.audit()

    def run(self, max_turns: int = 500) -> None:
        """Nothing more comes: what was held up goes on, what was reserved is given up, the rest runs to its end."""
        self.manager.resume()
        for _ in range(max_turns):
            if not self.manager.door.num_inside and not self.in_flight and not self.sending:
                break
            self.manager.drop_reservations(list(self.reservations))
            self.prepare()
            self.send()
            self.pulled()
            self.connectors_stop()
            self.manager.end_leases(self.lent)
            self.drain()
            self.launch()
            self.post()
        self.drain()
        self.connectors_stop()
        self.manager.end_leases(self.lent)
        self.drain()

    def check(self) -> None:
        """All accepted requests ended once, with their answer or its beginning; nothing is held; no caller waits."""
        for one in self.asked:
            with suppress(Exception):
                one.answer()
        left = {request.uid for request in self.requests.values()} ^ set(self.history.ends)
        assert not left, (left, self.manager.snapshot())
        for request_id, request in self.requests.items():
            end, (answer, reason) = self.history.ends[request.uid], answer_of(request)
            tokens = self.history.tokens.get(request.uid, [])
            if end.reason is FinishReason.LENGTH:
                assert (tokens, end.reason) == (answer, reason), request_id
            assert tokens == answer[: len(tokens)], request_id
        assert_nothing_held(self.manager)
        assert not len(self.manager._core._state.leases)
        assert len(self.manager._desk) == 0


def world(name: str, **changes: Any) -> World:
    """A small world: its manager's tokens are the device's."""
    return World(make(name, **changes))


def orders(*programs: Sequence[T]) -> Iterator[tuple[T, ...]]:
    """Every way to carry these out together, each in its own order."""
    left = [program for program in programs if program]
    if not left:
        yield ()
    for i, program in enumerate(left):
        for rest in orders(*left[:i], program[1:], *left[i + 1 :]):
            yield (program[0], *rest)
