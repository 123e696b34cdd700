"""A manager driven by hand, on a device that makes tokens up, with a history that is checked as it is written."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from headway.config import SchedulerConfig
from headway.executor.simulated import SimulatedTokens
from headway.managers import MANAGERS, Manager
from headway.model_limits import ModelLimits
from headway.request import NewRequest, Request
from headway.sampling import SamplingParams
from headway.scheduler import Batch, StepResult
from tests.history import History

VOCAB = 32000
ALL = tuple(MANAGERS)
ACCESSES = ("v1", "v2")  # by the lock, by the mailbox; v0 is reached as v1 is, and differs in its allocation alone
PATIENCE = 30.0  # seconds after which something that should have happened counts as never happening

every_manager = pytest.mark.parametrize("name", ALL)  # where it matters how blocks are allocated

T = TypeVar("T")


def config(**changes: Any) -> SchedulerConfig:
    """Small limits with room for all requests."""
    limits: dict[str, Any] = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_model_len": 64,
        "block_size": 4,
        "num_blocks": 129,
    }
    return SchedulerConfig(**(limits | changes))


def make(
    name: str,
    *,
    max_waiting: int = 4096,
    eos: tuple[int, ...] = (),
    managers: Mapping[Any, type[Manager]] = MANAGERS,
    has_preprocessor: bool = True,
    has_grammars: bool = True,
    **changes: Any,
) -> Manager:
    """A manager by its short name."""
    limits = ModelLimits(VOCAB, eos, has_preprocessor=has_preprocessor, has_grammars=has_grammars)
    return managers[name](config(**changes), limits=limits, max_waiting=max_waiting)


def new_request(request_id: str, prompt: Any, sampling: SamplingParams, **more: Any) -> NewRequest:
    """What a caller brings; the prompt may be any sequence."""
    return NewRequest(request_id=request_id, prompt=prompt, sampling=sampling, **more)


def make_request(manager: Manager, request_id: str, prompt: Any, sampling: SamplingParams, **more: Any) -> Request:
    """What the manager's door makes of it."""
    return manager.door.make_request(new_request(request_id, prompt, sampling, **more))


def prompt_of(seed: int, length: int) -> list[int]:
    """A prompt that is a function of its arguments."""
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def answer_to(prompt: Sequence[int] | NDArray[np.integer], count: int) -> list[int]:
    """What the simulated device answers to a prompt, whatever else runs and however often it is preempted."""
    base = zlib.crc32(np.asarray(prompt, np.int32).tobytes())
    return [(base + (len(prompt) + i) * 7919) % VOCAB for i in range(count)]


class Asking(Future[T]):
    """A question that is asked on a thread of its own, and its outcome."""

    def __init__(self, question: Callable[[], T]) -> None:
        super().__init__()
        self._question = question
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self.set_result(self._question())
        except BaseException as error:
            self.set_exception(error)

    def answer(self) -> T:
        """What it returned; raises what it raised."""
        return self.result(timeout=PATIENCE)


def asking(manager: Manager, question: Callable[[], T]) -> Asking[T]:
    """Ask on another thread. Returns when the query has been handed in, or the question has its outcome without."""
    there, put_query = threading.Event(), manager._put_query

    def put(*args: Any) -> None:
        put_query(*args)
        there.set()

    manager._put_query = put  # type: ignore[method-assign]
    try:
        one = Asking(question)
        one.add_done_callback(lambda _: there.set())
        assert there.wait(PATIENCE)
    finally:
        manager._put_query = put_query  # type: ignore[method-assign]
    return one


class Driver:
    """One manager, one thread, one simulated device, one history."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.history = History()
        self.tokens = SimulatedTokens(manager.config.max_num_seqs, VOCAB)
        self.next_pass: Callable[[], Batch | None] = manager.schedule

    def add(
        self, request_id: str = "a", prompt: Sequence[int] = (1, 2, 3), *, max_tokens: int | None = 4, **sampling: Any
    ) -> int:
        """Hand in a request; returns its uid."""
        request = make_request(self.manager, request_id, prompt, SamplingParams(max_tokens=max_tokens, **sampling))
        self.manager.add(request)
        return request.uid

    def launch(self) -> Batch | None:
        """One scheduling pass."""
        return self.next_pass()

    def result(self, batch: Batch) -> StepResult:
        """What the device makes of a batch; to be called once, in launch order."""
        return StepResult(batch.step_id, self.tokens.sample(batch))

    def complete(self, batch: Batch) -> None:
        """The device answers."""
        self.history.take(self.manager.update(self.result(batch)))

    def step(self) -> Batch | None:
        """A pass and its result."""
        batch = self.launch()
        if batch is not None:
            self.complete(batch)
        return batch

    def run(self, max_steps: int = 5000) -> None:
        """Steps until no request is inside."""
        for _ in range(max_steps):
            self.step()
            self.settle()
            if not self.manager.door.num_inside:
                return
        raise AssertionError(f"{self.manager.door.num_inside} requests are left after {max_steps} steps")

    def asking(self, question: Callable[[], T]) -> Asking[T]:
        """See the function of this name."""
        return asking(self.manager, question)

    def ask(self, question: Callable[[], T]) -> T:
        """Have it asked on another thread, and serve meanwhile."""
        one, until = self.asking(question), time.monotonic() + PATIENCE
        while not one.done() and time.monotonic() < until:
            self.manager.wait(0.01)
            self.settle()
        return one.answer()

    def settle(self) -> None:
        """What was handed in is applied and its effects are written down."""
        self.manager.drain()
        self.history.take(self.manager.take_effects())

    def run_out(self, max_steps: int = 200) -> None:
        """Steps until there is nothing more to compute."""
        for _ in range(max_steps):
            if self.step() is None:
                break
            self.settle()
        self.settle()

    def assert_empty(self) -> None:
        """Nothing leaked once connectors have stopped: no request inside, every slot and block back, the books
        balance."""
        while self.history.stopped:
            self.manager.receive_done(self.history.stopped.pop(0), error="not wanted any more")
        self.settle()
        assert_nothing_held(self.manager)


def assert_nothing_held(manager: Manager) -> None:
    """No request inside, every slot and block given back, ownership in order."""
    assert manager.door.num_inside == 0
    assert manager.door.inside() == []
    assert manager.num_free_slots() == manager.config.max_num_seqs
    manager._core.audit()
    assert manager._core.requests() == []
    snapshot = manager._core.snapshot()
    assert (snapshot.num_running, snapshot.num_waiting, snapshot.num_in_flight) == (0, 0, 0)
    assert snapshot.num_blocks_free + snapshot.num_blocks_evictable == snapshot.num_blocks_total
    assert manager._core.slots.num_free_slots() == manager.config.max_num_seqs


def hand_made(uid: int, request_id: str, prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 4) -> Request:
    """A request that did not come from the door."""
    return Request(
        uid=uid,
        request_id=request_id,
        prompt=np.array(prompt, np.int32),
        sampling=SamplingParams(max_tokens=max_tokens),
        max_tokens=max_tokens,
    )
