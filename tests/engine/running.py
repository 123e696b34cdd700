"""A running engine on a simulated device, whose effects are recorded and checked as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from headway.engine.connector import Connector
from headway.engine.engine import Engine, Preprocess
from headway.engine.writer import OnSending
from headway.executor.simulated import SimulatedExecutor, StepTimeModel
from headway.managers import Manager
from headway.request import Transfer
from headway.sampling import SamplingParams
from headway.scheduler import Batch, Effects
from tests.history import History
from tests.managers.driving import PATIENCE, VOCAB, make, new_request


def eventually(condition: Callable[[], Any]) -> bool:
    """Whether the condition comes true."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


class Recorder(History):
    """The history of an engine; knows on which threads it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()

    def take(self, effects: Effects) -> None:
        assert effects, "told of nothing"
        assert not (effects.jobs or effects.sending or effects.awaited), "these are the loop's and the manager's"
        assert not effects.kv_is_void, "the connector's"
        assert not (effects.pulls or effects.stopped_pulls or effects.lending or effects.revoked), "the connector's"
        self.threads.add(threading.current_thread().name)
        super().take(effects)

    def wait_for(self, uids: Iterable[int]) -> None:
        """Until all of these have ended."""
        uids = list(uids)
        assert eventually(lambda: all(uid in self.ends for uid in uids)), f"{set(uids) - set(self.ends)} never ended"


class Running:
    """An engine, what it is made of, and what it reported."""

    def __init__(self, manager: Manager, executor: SimulatedExecutor, **options: Any) -> None:
        self.manager = manager
        self.executor = executor
        self.history = Recorder()
        self.on_effects: Callable[[Effects], None] = self.history.take  # a test may put something before it
        self.engine = Engine(manager, executor, lambda effects: self.on_effects(effects), **options)

    def add(
        self,
        request_id: str,
        prompt: Sequence[int] = (1, 2, 3),
        *,
        max_tokens: int = 4,
        preprocess: bytes | None = None,
        transfer: Transfer | None = None,
        kv_transfer_params: dict[str, Any] | None = None,
        **sampling: Any,
    ) -> int:
        """Hand in a request; returns its uid."""
        params = SamplingParams(max_tokens=max_tokens, **sampling)
        new = new_request(
            request_id,
            prompt,
            params,
            preprocess=preprocess,
            transfer=transfer,
            kv_transfer_params=kv_transfer_params,
        )
        return self.engine.add(new)


class Clock:
    """The writer's time, which passes only when a test says so. The writer looks around often, by the real clock."""

    LONGEST_SLEEP = 0.01

    def __init__(self) -> None:
        self.now = 1000.0
        self._looks = 0

    def monotonic(self) -> float:
        if threading.current_thread().name == "headway-writer":
            self._looks += 1
        return self.now

    def let_look(self) -> None:
        """Wait until the writer has looked at everything twice, at this time of the clock."""
        until = self._looks + 6  # two looks a turn; the first turn may be half over
        assert eventually(lambda: self._looks >= until), "the writer does not look around"

    def let_pass(self, seconds: float) -> None:
        """What has happened is seen, then time passes, and that is seen."""
        self.let_look()
        self.now += seconds
        self.let_look()


def pause_within_a_step(it: Running, hang: Hang, *args: Any, **kwargs: Any) -> None:
    """Pause while the device is in the step in which it hangs, so that all who are inside are in the middle."""
    assert hang.reached.wait(PATIENCE)
    thread = threading.Thread(target=it.manager.pause, args=args, kwargs=kwargs)
    thread.start()
    assert eventually(lambda: it.manager.snapshot().paused)
    hang.let_go.set()
    thread.join(PATIENCE)
    assert not thread.is_alive() and it.manager.snapshot().num_in_flight == 0


class Device(SimulatedExecutor):
    """A simulated device for small tests; a subclass misbehaves."""

    def __init__(self, *, before_step: Callable[[Batch], None] | None = None, base_s: float = 0.0) -> None:
        super().__init__(StepTimeModel(base_s), max_num_seqs=64, vocab_size=VOCAB, before_step=before_step)


@contextmanager
def running(
    name: str,
    device: SimulatedExecutor | None = None,
    *,
    step_timeout: float = PATIENCE,
    depth: int = 2,
    start: bool = True,
    preprocess: Preprocess | None = None,
    on_sending: OnSending | None = None,
    connector: Connector | None = None,
    make: Callable[..., Manager] = make,
    **limits: Any,
) -> Iterator[Running]:
    """An engine that is shut down at the end and must leave no thread behind. depth: steps on the device at once."""
    before = set(threading.enumerate())
    setup = Running(
        make(name, **limits),
        device or Device(),
        step_timeout=step_timeout,
        async_scheduling=depth > 1,
        preprocess=preprocess,
        on_sending=on_sending,
        connector=connector,
    )
    if start:
        setup.engine.start()
    try:
        yield setup
    finally:
        setup.engine.shutdown()
    assert eventually(lambda: set(threading.enumerate()) <= before), set(threading.enumerate()) - before


class Hang:
    """Holds up the device in its first step, or in the one named, until it is let go."""

    def __init__(self, step_id: int = 1) -> None:
        self._step_id = step_id
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, batch: Batch) -> None:
        if batch.step_id == self._step_id:
            self.reached.set()
            self.let_go.wait(2 * PATIENCE)
