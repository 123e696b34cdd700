"""The writer: the one thread that drives a manager and an executor."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from headway.config import Role
from headway.executor.base import Executor
from headway.managers import Manager
from headway.request import FinishReason
from headway.scheduler import DeviceLost, Effects

logger = logging.getLogger(__name__)

OnEffects = Callable[[Effects], None]

_LONGEST_SLEEP = 0.5  # seconds; a sleeping writer looks around this often, so that its health can be seen
_STALL_SECONDS = 10.0  # work, nothing on the device, and no progress for so long: something is wrong


class WriterLoop:
    """Takes what happened, keeps the device busy, tells what came of it.

    The only place where it waits is `manager.wait`. A failing step ends its requests and nothing else. A step that
    does not answer within `step_timeout` seconds is given up: what runs ends with an error, and the executor is
    restarted; if it cannot be, or if an invariant breaks, the engine says so, ends every request and stops.

    on_effects: called on this thread; must not block.
    """

    def __init__(
        self, manager: Manager, executor: Executor, on_effects: OnEffects, *, step_timeout: float = 300.0
    ) -> None:
        self._manager = manager
        self._executor = executor
        self._on_effects = on_effects
        self._step_timeout = step_timeout
        self._schedule = manager.prefill_schedule if manager.config.role is Role.PREFILL else manager.schedule
        self._stopping = False
        self._failure: str | None = None
        self._seen: tuple[int, int] = (0, 0)
        self._progress_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="headway-writer", daemon=True)

    @property
    def failure(self) -> str | None:
        """Why the loop stopped by itself; None while it has not."""
        return self._failure

    def is_stalled(self) -> bool:
        """Whether there is work and no progress: a dead or stuck writer, or a device that does not answer."""
        if self._failure is not None:
            return True
        if not self._manager.door.num_inside:
            return False
        on_device = self._manager.snapshot().num_in_flight > 0
        patience = self._step_timeout if on_device else _STALL_SECONDS
        return time.monotonic() - self._progress_at > patience + _LONGEST_SLEEP

    def start(self) -> None:
        """Start the device and the writer."""
        self._executor.start(self._manager.post_result)
        self._thread.start()

    def stop(self) -> None:
        """End every request that is left and stop. Idempotent; returns when the thread has ended."""
        self._stopping = True
        self._manager.add_abort_req_ids(())  # an empty message: it only wakes the writer
        if self._thread.ident is None:  # never started, so nobody else ends what was handed in
            self._run()
        elif self._thread.is_alive():
            self._thread.join()
        self._executor.shutdown()

    def _run(self) -> None:
        try:
            while not self._stopping and self._failure is None:
                self._turn()
        except Exception as error:
            logger.exception("the writer stops: an invariant is broken")
            self._failure = f"the engine stopped: {type(error).__name__}: {error}"
        reason = FinishReason.ABORT if self._failure is None else FinishReason.ERROR
        effects = self._manager.close(reason, self._failure or "the engine was shut down")
        if effects:
            self._on_effects(effects)

    def _turn(self) -> None:
        manager, executor = self._manager, self._executor
        manager.wait(self._patience())
        manager.drain()
        self._watch()
        if self._failure is not None:
            return
        while manager.snapshot().num_in_flight < executor.max_in_flight:
            batch, _ = self._schedule()  # the requests it ended are among the effects
            if batch is None:
                break
            executor.launch(batch)
        effects = manager.take_effects()
        if effects:
            self._on_effects(effects)

    def _patience(self) -> float:
        """How long the writer may sleep: not past the moment at which the watchdog must look."""
        if not self._manager.snapshot().num_in_flight:
            return _LONGEST_SLEEP
        left = self._progress_at + self._step_timeout - time.monotonic()
        return min(max(left, 0.0), _LONGEST_SLEEP)

    def _watch(self) -> None:
        """Note progress; give up a step that does not answer."""
        snapshot, now = self._manager.snapshot(), time.monotonic()
        seen = (snapshot.step_id, snapshot.num_in_flight)
        if seen != self._seen or not snapshot.has_work:
            self._seen, self._progress_at = seen, now
        elif snapshot.num_in_flight and now - self._progress_at >= self._step_timeout:
            oldest = snapshot.step_id - snapshot.num_in_flight + 1  # steps are answered in launch order
            reason = f"step {oldest} did not answer within step_timeout ({self._step_timeout:g} s)"
            logger.error("%s; its requests fail", reason)
            self._progress_at = now
            if self._executor.restart():
                self._manager.post_result(DeviceLost(reason))
                self._manager.drain()
            else:
                self._failure = f"the engine stopped: {reason}, and the device cannot be restarted"
