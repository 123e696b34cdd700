"""Access by one lock: each caller applies its own message."""

from __future__ import annotations

import threading
import time

from headway.config import SchedulerConfig
from headway.managers.manager import Manager
from headway.model_limits import ModelLimits
from headway.scheduler import AwaitSteps, Batch, Command, Effects, Message, Query, Result


class LockedManager(Manager):
    """Dynamic allocation under one global lock.

    A caller applies its own command. So it waits while a pass or another caller holds the lock. The lock-free manager
    is measured against this one, and must decide the same.

    An error while a caller's message is applied is not raised in the caller. The next `drain` raises it, so that the
    loop stops.
    """

    def __init__(self, config: SchedulerConfig, *, limits: ModelLimits | None = None, max_waiting: int = 4096) -> None:
        super().__init__(config, limits=limits, max_waiting=max_waiting)
        self._lock = threading.Condition()
        self._changed = False
        self._broken: BaseException | None = None

    def post_result(self, result: Result) -> None:
        self._hand_in(result)

    def wait(self, timeout: float) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._changed, timeout)
            self._changed = False

    def wake(self) -> None:
        with self._lock:
            self._changed = True
            self._lock.notify_all()

    def drain(self) -> None:
        """Apply deadlines that have passed: callers have applied their messages themselves. Raises the error of a
        message that broke an invariant."""
        self._desk.serve_here()
        if self._broken is not None:
            raise self._broken
        deadline = self._snapshot.next_deadline
        if deadline is not None and deadline <= time.monotonic():
            with self._lock:
                self._tick()
                self._publish()

    def schedule(self) -> Batch | None:
        with self._lock:
            self.drain()
            return self._run_pass(prefill_only=False)

    def prefill_schedule(self) -> Batch | None:
        with self._lock:
            self.drain()
            return self._run_pass(prefill_only=True)

    def take_effects(self) -> Effects:
        with self._lock:
            return super().take_effects()

    def take_preempted(self) -> tuple[int, ...]:
        with self._lock:
            return super().take_preempted()

    def _put(self, command: Command) -> None:
        self._hand_in(command)

    def _put_query(self, query: Query | AwaitSteps, timeout: float) -> None:
        if not self._lock.acquire(timeout=timeout):
            raise TimeoutError(f"the scheduler's lock was not free within {timeout:.3g} s; the query was not asked")
        try:
            self._hand_in(query)
        finally:
            self._lock.release()

    def _hand_in(self, message: Message) -> None:
        """Apply a caller's message, on its thread."""
        with self._lock:
            if self._closed or self._broken is not None:  # `close` sets `_closed` before it takes the last effects
                return
            try:
                self._apply(message)
            except BaseException as error:  # a broken invariant: the loop must stop, whichever thread found it
                self._broken = error
                if not isinstance(error, Exception):  # an interrupt, which concerns the caller too
                    raise
            finally:
                self._changed = True
                self._lock.notify_all()

    def _apply(self, message: Message) -> None:
        with self._lock:
            self._carry_out(message)
            self._publish()
