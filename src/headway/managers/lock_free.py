"""Access by mailbox: callers put messages in, the writer applies them."""

from __future__ import annotations

import time

from headway.config import SchedulerConfig
from headway.managers.mailbox import Mailbox
from headway.managers.manager import Manager
from headway.model_limits import ModelLimits
from headway.scheduler import AwaitSteps, Batch, Command, Message, Query, Result

MAX_COMMANDS_PER_TURN = 1024
MAX_SECONDS_PER_TURN = 0.0005  # for each `drain`; a turn that launches a step drains twice


class LockFreeManager(Manager):
    """Dynamic allocation, no lock. The default.

    Only the writer, the thread that drives the loop, touches the core. Every other thread leaves a message and goes
    on. Draining is bounded in count and in time, so that a flood of commands delays no step.
    """

    def __init__(self, config: SchedulerConfig, *, limits: ModelLimits | None = None, max_waiting: int = 4096) -> None:
        super().__init__(config, limits=limits, max_waiting=max_waiting)
        self._mailbox = Mailbox()

    def post_result(self, result: Result) -> None:
        self._mailbox.put_result(result)

    def wait(self, timeout: float) -> None:
        self._mailbox.wait(timeout)

    def wake(self) -> None:
        self._mailbox.wake()

    def drain(self) -> None:
        self._desk.serve_here()
        until = time.monotonic() + MAX_SECONDS_PER_TURN
        for message in self._mailbox.take(MAX_COMMANDS_PER_TURN):
            self._carry_out(message)
            if time.monotonic() > until:
                break
        self._tick()
        self._publish()

    def schedule(self) -> Batch | None:
        self.drain()
        return self._run_pass(prefill_only=False)

    def prefill_schedule(self) -> Batch | None:
        self.drain()
        return self._run_pass(prefill_only=True)

    def _put(self, command: Command) -> None:
        self._mailbox.put(command)

    def _put_query(self, query: Query | AwaitSteps, timeout: float) -> None:
        self._mailbox.put(query)

    def _apply(self, message: Message) -> None:
        self._carry_out(message)
        self._publish()
