"""A resource manager: the surface, and the side of it that faces the loop and the device."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import ClassVar

from headway.config import SchedulerConfig
from headway.errors import QueryError
from headway.managers.surface import Surface
from headway.model_limits import ModelLimits
from headway.request import FinishReason
from headway.scheduler import (
    Allocation,
    AwaitSteps,
    Batch,
    DynamicAllocation,
    Effects,
    Message,
    Pause,
    Query,
    RequestEnd,
    Reservation,
    Result,
    Resume,
    Scheduler,
    SendDone,
    Snapshot,
    StepResult,
    Tick,
)


class Manager(Surface):
    """A scheduler that many threads may use. A subclass decides only how a call reaches the core.

    Three groups of callers:
    - anybody: see Surface. None of these waits for the device, unless it asks to; whether one can wait for a
      scheduling pass is what subclasses differ in.
    - whoever runs the device, or a job: `post_result`.
    - the one thread that drives the loop: `wait`, `drain`, `schedule` or `prefill_schedule`, `update`,
      `take_effects`, `close`. It may not ask queries: it would wait for itself.

    allocation: the policy of the core; fixed by the subclass.
    """

    allocation: ClassVar[type[Allocation]] = DynamicAllocation

    def __init__(self, config: SchedulerConfig, *, limits: ModelLimits | None = None, max_waiting: int = 4096) -> None:
        super().__init__(config, limits or ModelLimits(), max_waiting)
        self._core = Scheduler(config, self.allocation())
        self._effects = Effects()
        self._snapshot = self._core.snapshot()

    def snapshot(self) -> Snapshot:
        return self._snapshot

    # -- whoever runs the device or a job ------------------------------------------------------------------------

    @abstractmethod
    def post_result(self, result: Result) -> None:
        """Report what became of a step or a job. Any thread. Nobody hears what comes after `close`."""

    def send_done(self, uid: int, error: str | None = None) -> None:
        """P: the KV of a request is with D, or cannot be sent; its blocks are not read any more. Any thread."""
        self._check_open()
        self.post_result(SendDone(uid, error))

    # -- the loop ------------------------------------------------------------------------------------------------

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Sleep until there is something to do, at most `timeout` seconds."""

    @abstractmethod
    def wake(self) -> None:
        """Let `wait` return. Any thread."""

    @abstractmethod
    def drain(self) -> None:
        """Apply what was handed in, a bounded share of it, and what the clock brings about."""

    @abstractmethod
    def schedule(self) -> Batch | None:
        """The next step of an engine that computes everything. What was handed in so far is taken into account."""

    @abstractmethod
    def prefill_schedule(self) -> Batch | None:
        """The next step of a prefill instance: running prefills only, the whole budget."""

    @abstractmethod
    def _apply(self, message: Message) -> None:
        """Carry out a message as the thread that drives the loop."""

    def update(self, result: StepResult) -> Effects:
        """Apply a step's result here and now, and return everything that came about since the last look."""
        self._apply(result)
        return self.take_effects()

    def take_effects(self) -> Effects:
        """Everything that came about since the last look. Answers are not among it: they are with those who asked."""
        effects, self._effects = self._effects, Effects()
        return effects

    def close(self, reason: FinishReason, message: str | None = None) -> Effects:
        """Stop: nothing is accepted or applied any more, every request inside ends now, for this reason, and every
        query fails.

        Returns the last effects, with the ends of all requests whose end had not been seen.
        """
        self.door.close(message or "the engine has stopped")
        self._closed = True
        self._desk.close(self._reason())
        effects = self.take_effects()
        effects.ended += [
            RequestEnd(claim.uid, claim.request_id, reason, error=message, engine_stopped=True)
            for claim in self.door.inside()
            if claim.accepted and self.door.leave(claim.uid)
        ]
        return effects

    # -- for subclasses ------------------------------------------------------------------------------------------

    def _carry_out(self, message: Message) -> None:
        """Apply a message to the core and keep its effects. Only where the core may be touched."""
        if isinstance(message, Query):
            self._carry_out_query(message)
            return
        if isinstance(message, AwaitSteps) and self._desk.take(message.reply) is None:
            return  # its caller has left
        self._keep(self._core.apply(message, time.monotonic()))
        # Callers set the door before they tell, so that it counts at once. It is set again here because, where `pause`
        # and `resume` meet, core and door must agree in the end on whichever came last.
        if isinstance(message, Pause):
            self.door.pause()
        elif isinstance(message, Resume):
            self.door.resume()

    def _carry_out_query(self, query: Query) -> None:
        """Answer a query, unless its caller has left."""
        cell = self._desk.take(query.reply)
        if cell is None or not cell.claim():
            return
        try:
            answer = self._core.ask(query, time.monotonic())
        except QueryError as error:  # refused by its check: nothing has changed
            cell.fail(error)
            return
        heard = cell.answer(answer)
        if heard and isinstance(answer, Reservation):
            self.door.accept(answer.uid)

    def _tick(self) -> None:
        """Tell the core if a deadline has passed. Only where the core may be touched."""
        deadline = self._core.next_deadline
        if deadline is not None and deadline <= time.monotonic():
            self._carry_out(Tick())

    def _keep(self, effects: Effects) -> None:
        kept = self._effects
        kept.started += effects.started
        kept.tokens += effects.tokens
        kept.sending += effects.sending
        kept.jobs += effects.jobs
        kept.ended += [end for end in effects.ended if self.door.leave(end.uid)]
        for reply in effects.awaited:
            cell = self._desk.take(reply)
            if cell is not None:
                cell.answer(None)

    def _run_pass(self, prefill_only: bool) -> Batch | None:
        """One scheduling pass. Only where the core may be touched."""
        batch = self._core.prefill_schedule() if prefill_only else self._core.schedule()
        self._publish()
        return batch

    def _publish(self) -> None:
        self._snapshot = self._core.snapshot()
