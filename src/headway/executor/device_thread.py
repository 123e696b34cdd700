"""The threads on which the steps of an executor run, one after another, in launch order.

one thread                     run(batch) ─────────▶ on_done(result)

a device that works by itself  run(batch) ─▶ step ─▶ fetch(step) ─▶ on_done(result)
                               device thread         result thread: waits for the device, while the
                                                     device thread plans and enqueues the next step
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np

from headway.executor.base import DeviceLostError, OnDone
from headway.scheduler.batch import Batch, StepResult

logger = logging.getLogger(__name__)

Fetch = Callable[[Any], StepResult]


class DeviceThread:
    """Takes batches from a queue, runs them, and reports each exactly once.

    run: computes one step. An exception becomes a StepResult with `error` set, and the next batch still runs. With
        `fetch`, `run` only puts the step on the device, and returns the argument for `fetch`.
    on_done: called with each result, on the thread that computed or fetched it.
    fetch: waits for a step and returns its result, on a thread of its own. An exception fails that step.
    """

    def __init__(self, run: Callable[[Batch], Any], on_done: OnDone, *, fetch: Fetch | None = None) -> None:
        self._run = run
        self._on_done = on_done
        self._fetch = fetch
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._enqueued: SimpleQueue[tuple[int, Any] | None] = SimpleQueue()  # steps, or StepResults of failed ones
        self._stopping = False
        # Daemons: a step that hangs in native code cannot be interrupted, and must not keep the process alive.
        # `exit_process` ends a process beside them.
        self._threads = [threading.Thread(target=self._loop, name="headway-device", daemon=True)]
        if fetch is not None:
            self._threads.append(threading.Thread(target=self._fetch_loop, name="headway-results", daemon=True))
        for thread in self._threads:
            thread.start()

    def launch(self, batch: Batch) -> None:
        """Queue one step; never waits."""
        self._queue.put(batch)

    def stop(self, timeout: float) -> bool:
        """Report nothing more and end the threads. True: the threads have ended. False: a thread is still in a step
        after `timeout` seconds, or is the caller. Idempotent."""
        self._stopping = True
        self._queue.put(None)
        if threading.current_thread() in self._threads:
            return False
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _loop(self) -> None:
        while (batch := self._queue.get()) is not None and not self._stopping:
            step = self._attempt(self._run, batch.step_id, batch)
            if self._fetch is None:
                self._report(step)
            else:
                self._enqueued.put((batch.step_id, step))
        self._enqueued.put(None)

    def _fetch_loop(self) -> None:
        assert self._fetch is not None
        while (enqueued := self._enqueued.get()) is not None:
            step_id, step = enqueued
            if self._stopping:
                continue
            failed = isinstance(step, StepResult)
            self._report(step if failed else self._attempt(self._fetch, step_id, step))

    def _report(self, result: StepResult) -> None:
        if not self._stopping:
            self._on_done(result)

    @staticmethod
    def _attempt(function: Callable[[Any], Any], step_id: int, argument: Any) -> Any:
        """The value that the function returns; if it raises, a StepResult with `error` set."""
        try:
            return function(argument)
        except Exception as error:  # any error of the model, torch or the driver fails this step only
            if isinstance(error, DeviceLostError):
                logger.error("step %d failed: %s", step_id, error)
            else:
                logger.exception("step %d failed", step_id)
            message = f"{type(error).__name__}: {error}"
            return StepResult(step_id=step_id, tokens=np.empty(0, np.int32), error=message)
