"""The thread on which an executor's steps run, one after another, in launch order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np

from headway.executor.base import OnDone
from headway.scheduler.batch import Batch, StepResult

logger = logging.getLogger(__name__)


class DeviceThread:
    """Takes batches from a queue, runs them, reports each exactly once.

    run: computes one step; what it raises becomes a StepResult with `error` set, and the next batch is run all the
        same.
    on_done: called on this thread.
    """

    def __init__(self, run: Callable[[Batch], StepResult], on_done: OnDone) -> None:
        self._run = run
        self._on_done = on_done
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._stopping = False
        # A daemon: a step that hangs in native code cannot be interrupted, and must not keep the process alive.
        self._thread = threading.Thread(target=self._loop, name="headway-device", daemon=True)
        self._thread.start()

    def launch(self, batch: Batch) -> None:
        """Queue one step; never waits."""
        self._queue.put(batch)

    def stop(self, timeout: float) -> bool:
        """Report nothing more and end the thread. True: it has ended; False: it is still in a step after `timeout`
        seconds, or it is the caller. Idempotent."""
        self._stopping = True
        self._queue.put(None)
        if threading.current_thread() is self._thread:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while (batch := self._queue.get()) is not None and not self._stopping:
            try:
                result = self._run(batch)
            except Exception as error:  # whatever the model, torch or the driver raises fails this step only
                logger.exception("step %d failed", batch.step_id)
                message = f"{type(error).__name__}: {error}"
                result = StepResult(step_id=batch.step_id, tokens=np.empty(0, np.int32), error=message)
            if not self._stopping:
                self._on_done(result)
