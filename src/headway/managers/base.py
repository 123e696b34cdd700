"""The public surface of every resource manager, written once."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from headway.config import SchedulerConfig
from headway.managers.door import Door, ModelLimits
from headway.request import EngineDeadError, FinishReason, Request, SamplingParams
from headway.scheduler import (
    AbortRequests,
    AddRequest,
    Allocation,
    Batch,
    Command,
    DeviceLost,
    DynamicAllocation,
    Effects,
    FinishRequests,
    Message,
    RequestEnd,
    Scheduler,
    Snapshot,
    StepResult,
)

Scheduled = tuple[Batch | None, list[RequestEnd]]


class Manager(ABC):
    """A scheduler that many threads may use. A subclass decides only how a call reaches the core.

    Three groups of callers:
    - anybody: `make_request`, `add_request`, `finish_requests`, `add_abort_req_ids`, `available_batch`, `snapshot`.
      None of these waits for the device; whether one can wait for a scheduling pass is what subclasses differ in.
    - whoever runs the device: `post_result`.
    - the one thread that drives the loop: `wait`, `drain`, `schedule` or `prefill_schedule`, `update`,
      `take_effects`, `close`.

    allocation: the policy of the core; fixed by the subclass.
    """

    allocation: ClassVar[type[Allocation]] = DynamicAllocation

    def __init__(self, config: SchedulerConfig, *, limits: ModelLimits | None = None, max_waiting: int = 4096) -> None:
        self.config = config
        self.door = Door(config, limits or ModelLimits(), max_waiting)
        self._core = Scheduler(config, self.allocation())
        self._effects = Effects()
        self._snapshot = self._core.snapshot()
        self._closed = False

    # -- anybody -------------------------------------------------------------------------------------------------

    def make_request(
        self,
        request_id: str,
        prompt: Sequence[int] | NDArray[np.integer],
        sampling: SamplingParams,
        *,
        uid: int | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> Request:
        """Check a request against the limits and pack it. Raises RequestError naming the value and the limit."""
        return self.door.make_request(
            request_id,
            prompt,
            sampling,
            uid=uid,
            priority=priority,
            cache_salt=cache_salt,
            arrival_time=time.monotonic(),
        )

    def add_request(self, request: Request) -> None:
        """Hand in a request. It will end exactly once, with a RequestEnd.

        Raises DuplicateRequestError, QueueFullError or EngineDeadError; then nothing was handed in.
        """
        self.door.enter(request)
        self._tell(AddRequest(request))
        if self._closed and self.door.leave(request.uid):  # it was closed while we were at the door
            raise EngineDeadError("the engine has stopped")

    def finish_requests(self, ids: Iterable[str | int]) -> None:
        """End requests whose answer is complete, by request id or uid. Unknown ones are a no-op."""
        self._tell(FinishRequests(self.door.uids_of(ids)))

    def add_abort_req_ids(self, ids: Iterable[str | int]) -> None:
        """End requests that nobody wants any more, by request id or uid, whatever they are doing. Unknown ones are a
        no-op."""
        self._tell(AbortRequests(self.door.uids_of(ids)))

    def available_batch(self) -> int:
        """Slots that no accepted request has a claim on, those not yet applied included."""
        return max(0, self.config.max_num_seqs - self.door.num_inside)

    def snapshot(self) -> Snapshot:
        """The state as last published. Immutable."""
        return self._snapshot

    # -- whoever runs the device ---------------------------------------------------------------------------------

    @abstractmethod
    def post_result(self, result: StepResult | DeviceLost) -> None:
        """Report what became of a step. Any thread."""

    # -- the loop ------------------------------------------------------------------------------------------------

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Sleep until there is something to do, at most `timeout` seconds."""

    @abstractmethod
    def drain(self) -> None:
        """Apply what was handed in, a bounded share of it."""

    @abstractmethod
    def schedule(self) -> Scheduled:
        """The next step of an engine that computes everything. What was handed in so far is taken into account."""

    @abstractmethod
    def prefill_schedule(self) -> Scheduled:
        """The next step of a prefill instance: running prefills only, the whole budget."""

    @abstractmethod
    def _apply(self, message: Message) -> None:
        """Carry out a message as the thread that drives the loop."""

    def update(self, result: StepResult) -> Effects:
        """Apply a step's result here and now, and return everything that came about since the last look."""
        self._apply(result)
        return self.take_effects()

    def take_effects(self) -> Effects:
        """Everything that came about since the last look."""
        effects, self._effects = self._effects, Effects()
        return effects

    def close(self, reason: FinishReason, message: str | None = None) -> Effects:
        """Stop: nothing is accepted or applied any more, and every request inside ends now, for this reason.

        Returns the last effects, with the ends of all requests whose end had not been seen.
        """
        self.door.close(message or "the engine has stopped")
        self._closed = True
        effects = self.take_effects()
        effects.ended += [
            RequestEnd(claim.uid, claim.request_id, reason, message=message)
            for claim in self.door.inside()
            if self.door.leave(claim.uid)
        ]
        return effects

    # -- for subclasses ------------------------------------------------------------------------------------------

    @abstractmethod
    def _tell(self, command: Command) -> None:
        """Bring a command to the core."""

    def _carry_out(self, message: Message) -> None:
        """Apply a message to the core and keep its effects. Only where the core may be touched."""
        self._keep(self._core.apply(message, time.monotonic()))

    def _keep(self, effects: Effects) -> None:
        self._effects.started += effects.started
        self._effects.tokens += effects.tokens
        self._effects.ended += [end for end in effects.ended if self.door.leave(end.uid)]

    def _run_pass(self, prefill_only: bool) -> Scheduled:
        """One scheduling pass. Only where the core may be touched."""
        core = self._core
        batch, errors = (core.prefill_schedule if prefill_only else core.schedule)(time.monotonic())
        self._keep(Effects(ended=errors))
        self._publish()
        return batch, errors

    def _publish(self) -> None:
        self._snapshot = self._core.snapshot()
