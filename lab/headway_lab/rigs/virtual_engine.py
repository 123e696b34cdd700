"""An engine on virtual time: the core, and a device that computes nothing; a formula gives the time of each step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from headway.config import Role, SchedulerConfig
from headway.executor.simulated import SimulatedExecutor, SimulatedTokens, StepTimeModel
from headway.scheduler import Command, Effects, Query, Scheduler, StepResult, Tick
from headway.scheduler.messages import LeasesEnded, LeasesRenewed, ReceiveDone
from headway_lab.rigs.virtual_time import VirtualTime

VOCAB_SIZE = 32_000

Told = Command | StepResult | Tick | ReceiveDone | LeasesRenewed | LeasesEnded


class VirtualEngine:
    """Drives a core as the writer of an engine does, overlapped, with a writer that needs no time.

    on_effects: gets what comes of each message and pass, at its moment; it may tell the engine something at once.
    busy_s: seconds in which the device has computed. num_steps: that it has computed.
    """

    def __init__(
        self,
        time: VirtualTime,
        config: SchedulerConfig,
        step_time: StepTimeModel,
        on_effects: Callable[[Effects], None] = lambda _: None,
    ) -> None:
        self.core = Scheduler(config)
        self.on_effects = on_effects
        self.busy_s = 0.0
        self.num_steps = 0
        self._time = time
        self._step_time = step_time
        self._schedule = self.core.prefill_schedule if config.role is Role.PREFILL else self.core.schedule
        self._tokens = SimulatedTokens(config.max_num_seqs, VOCAB_SIZE)
        self._in_flight = 0
        self._free_at = 0.0  # when the device has ended its last step
        self._turn_is_planned = False
        self._tick_at: float | None = None

    def tell(self, message: Told) -> None:
        """Apply a message now."""
        self._carry_out(self.core.apply(message, self._time.now))

    def ask(self, query: Query) -> object:
        """The answer to a query, now."""
        answer = self.core.ask(query, self._time.now)
        self._plan_turn()
        return answer

    def _carry_out(self, effects: Effects) -> None:
        effects.pulls = self.core.take_pulls()
        self._plan_turn()
        if effects:
            self.on_effects(effects)

    def _plan_turn(self) -> None:
        """A turn comes after all messages of this moment: the writer drains its mailbox before it schedules."""
        if not self._turn_is_planned:
            self._turn_is_planned = True
            self._time.at(self._time.now, self._turn)

    def _turn(self) -> None:
        self._turn_is_planned = False
        while self._in_flight < SimulatedExecutor.max_in_flight and (batch := self._schedule()) is not None:
            seconds = self._step_time.seconds(batch)
            self._free_at = max(self._time.now, self._free_at) + seconds
            self.busy_s += seconds
            self.num_steps += 1
            self._in_flight += 1
            self._time.at(
                self._free_at, partial(self._step_done, StepResult(batch.step_id, self._tokens.sample(batch)))
            )
        if pulls := self.core.take_pulls():
            self.on_effects(Effects(pulls=pulls))
        deadline = self.core.next_deadline
        if deadline is not None and deadline != self._tick_at:
            self._tick_at = deadline
            self._time.at(deadline, partial(self._tick, deadline))

    def _step_done(self, result: StepResult) -> None:
        self._in_flight -= 1
        self.tell(result)

    def _tick(self, deadline: float) -> None:
        if deadline == self._tick_at:
            self._tick_at = None
            self.tell(Tick())
