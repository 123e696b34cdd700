"""A resource manager: the surface for callers, and the side that faces the loop and the device."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable
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
    LeasesEnded,
    LeasesRenewed,
    Message,
    Pause,
    Query,
    ReceiveDone,
    RequestEnd,
    Reservation,
    Result,
    Resume,
    Scheduler,
    SendDone,
    SlotAcknowledged,
    Snapshot,
    StepResult,
    Tick,
)


class Manager(Surface):
    """A scheduler that many threads may use. A subclass decides only how a call reaches the core.

    Three groups of callers:
    - any thread: the verbs of `Surface`. Only `await_steps` and `pause` wait for the device. Whether a call can wait
      for a scheduling pass depends on the subclass.
    - the threads of the device and of jobs: `post_result`.
    - the one thread that drives the loop: `wait`, `drain`, `schedule` or `prefill_schedule`, `update`,
      `take_effects`, `take_preempted`, `close`. It may not ask queries: it would wait for itself.

    allocation: the allocation policy of the core; set by the subclass.
    """

    allocation: ClassVar[type[Allocation]] = DynamicAllocation

    def __init__(self, config: SchedulerConfig, *, limits: ModelLimits | None = None, max_waiting: int = 4096) -> None:
        super().__init__(config, limits or ModelLimits(), max_waiting)
        self._core = Scheduler(config, self.allocation())
        self._effects = Effects()
        self._snapshot = self._core.snapshot()

    def snapshot(self) -> Snapshot:
        return self._snapshot

    # -- the device and jobs -------------------------------------------------------------------------------------

    @abstractmethod
    def post_result(self, result: Result) -> None:
        """Report the result of a step or a job. Any thread. After `close` results are ignored."""

    def send_done(self, uid: int, error: str | None = None) -> None:
        """P: the KV of a request has reached D, or could not be sent (`error`). Any thread.

        The blocks of the request are not read any more. Raises EngineDeadError once the engine has stopped.
        """
        self._check_open()
        self.post_result(SendDone(uid, error))

    def receive_done(self, uid: int, token: int | None = None, error: str | None = None) -> None:
        """D: the connector writes no more to the blocks of a request. Any thread. See `ReceiveDone`.

        token: comes from another engine. If it is no token id of this one, all that came with it is void.
        Raises EngineDeadError once the engine has stopped.
        """
        self._check_open()
        if token is not None and error is None and not self.door.is_token_id(token):
            error = f"its first token is {token!r}; token ids are integers from 0 to {self.door.num_token_ids - 1}"
        self.post_result(ReceiveDone(uid, None if error is not None or token is None else int(token), error))

    def renew_leases(self, uids: Iterable[int]) -> None:
        """P: D wants these leases still. Any thread. Raises EngineDeadError once the engine has stopped."""
        self._check_open()
        self.post_result(LeasesRenewed(tuple(uids)))

    def end_leases(self, uids: Iterable[int]) -> None:
        """P: D does not want these leases any more. Any thread. Raises EngineDeadError once the engine has stopped."""
        self._check_open()
        self.post_result(LeasesEnded(tuple(uids)))

    def slot_acknowledged(self, slot: int, generation: int) -> None:
        """The device has done with the former request of a slot: see `SlotAcknowledged`. Any thread. Raises
        EngineDeadError once the engine has stopped."""
        self._check_open()
        self.post_result(SlotAcknowledged(slot, generation))

    # -- the loop ------------------------------------------------------------------------------------------------

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Sleep until a message has come or `wake` was called, at most `timeout` seconds."""

    @abstractmethod
    def wake(self) -> None:
        """Let `wait` return. Any thread."""

    @abstractmethod
    def drain(self) -> None:
        """Apply messages of callers, a bounded number of them, and deadlines that have passed."""

    @abstractmethod
    def schedule(self) -> Batch | None:
        """Drain, and decide the next step: prefills and decodes. None: there is nothing to launch."""

    @abstractmethod
    def prefill_schedule(self) -> Batch | None:
        """Drain, and decide the next step of a P engine: prefills only, with the whole budget. None: as `schedule`."""

    @abstractmethod
    def _apply(self, message: Message) -> None:
        """Apply a message and publish the snapshot. Only the thread that drives the loop calls this."""

    def update(self, result: StepResult) -> Effects:
        """Apply the result of a step on this thread, and return the effects since the last `take_effects`."""
        self._apply(result)
        return self.take_effects()

    def take_effects(self) -> Effects:
        """The effects since the last call. Answers to queries are not among them: the callers of the queries have got
        these."""
        effects, self._effects = self._effects, Effects()
        effects.pulls = self._core.take_pulls()
        effects.kv_events = self._core.take_kv_events()
        effects.quarantined = self._core.take_quarantined()
        return effects

    def take_preempted(self) -> tuple[int, ...]:
        """uids of the requests that were preempted since the last batch or the last call: see
        `Scheduler.take_preempted`."""
        return self._core.take_preempted()

    def close(self, reason: FinishReason, message: str | None = None) -> Effects:
        """Stop. No message is accepted or applied any more, every request inside ends now, and every query fails.

        reason: the finish reason of the requests inside. message: their error, and the text of later EngineDeadErrors.
        Returns the last effects, with the ends of all requests whose end was not yet reported.
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
        """Apply a message to the core and keep its effects. Only where this thread may touch the core."""
        if isinstance(message, Query):
            self._carry_out_query(message)
            return
        if isinstance(message, AwaitSteps) and self._desk.take(message.reply) is None:
            return  # its caller has left
        self._keep(self._core.apply(message, time.monotonic()))
        # A caller sets the door before it sends the command, so that the door acts at once. The door is set again here:
        # when `pause` and `resume` race, core and door must end in the same state, which the later command decides.
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
        """Tell the core if a deadline has passed. Only where this thread may touch the core."""
        deadline = self._core.next_deadline
        if deadline is not None and deadline <= time.monotonic():
            self._carry_out(Tick())

    def _keep(self, effects: Effects) -> None:
        mine = self._effects
        mine.started += effects.started
        mine.prompt_logprobs += effects.prompt_logprobs
        mine.tokens += effects.tokens
        mine.sending += effects.sending
        mine.stopped_pulls += effects.stopped_pulls
        mine.lending += effects.lending
        mine.revoked += effects.revoked
        mine.kv_is_void |= effects.kv_is_void
        mine.jobs += effects.jobs
        mine.ended += [end for end in effects.ended if self.door.leave(end.uid)]
        for reply in effects.awaited:
            cell = self._desk.take(reply)
            if cell is not None:
                cell.answer(None)

    def _run_pass(self, prefill_only: bool) -> Batch | None:
        """One scheduling pass. Only where this thread may touch the core."""
        batch = self._core.prefill_schedule() if prefill_only else self._core.schedule()
        self._publish()
        return batch

    def _publish(self) -> None:
        self._snapshot = self._core.snapshot()
