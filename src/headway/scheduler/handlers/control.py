"""What an operator does to the whole scheduler: pause and resume, preempt all, clear, reset the cache, wait."""

from __future__ import annotations

from collections.abc import Iterable

from headway.request import FinishReason, RequestStatus
from headway.scheduler.effects import Answer, Effects
from headway.scheduler.messages import AwaitSteps, Pause, ResetPrefixCache
from headway.scheduler.passes.steps import Steps
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.state import State


class Control:
    """Takes effect at once, whatever is in flight: late results are recognised and dropped, or found by nobody else."""

    def __init__(self, state: State, steps: Steps) -> None:
        self._state = state
        self._steps = steps
        self._waiters: list[tuple[int, int]] = []  # (last step in flight when asked, reply id)

    def pause(self, message: Pause, effects: Effects) -> None:
        """Schedule nothing more."""
        self._state.paused = True
        entries = self._state.entries.values()
        if message.abort:
            self._end("the engine was paused", entries, effects)
        else:
            self.preempt_all()
        if message.reset_prefix_cache:  # what a reservation found in the cache would be stale
            reserved = [entry for entry in entries if entry.status is RequestStatus.RESERVED]
            self._end("the engine was paused and its cache reset", reserved, effects)
            self._state.reset_prefix_cache()

    def resume(self) -> None:
        """Schedule again."""
        self._state.paused = False

    def preempt_all(self) -> None:
        """Everything that has more to compute goes back to its place in the queue."""
        for slot in self._state.computing_slots().tolist():
            self._state.preempt(self._state.occupant(slot))

    def clear(self, effects: Effects) -> None:
        """End all, forget all."""
        self._end("the engine's data was cleared", self._state.entries.values(), effects)
        self._state.reset_prefix_cache()

    def reset_prefix_cache(self, message: ResetPrefixCache, effects: Effects) -> None:
        """Forget what is cached; what steps in flight compute is never found by others either."""
        effects.answers.append(Answer(message.reply, self._state.reset_prefix_cache()))

    def await_steps(self, message: AwaitSteps, effects: Effects) -> None:
        """Answer when what is in flight now is answered for."""
        self._waiters.append((self._steps.last_id, message.reply))
        self.steps_answered(effects)

    def steps_answered(self, effects: Effects) -> None:
        """Some steps are no longer in flight: tell those who wait for that."""
        if not self._waiters:
            return
        oldest = min(self._steps.in_flight, default=self._steps.last_id + 1)
        effects.answers += [Answer(reply, None) for last, reply in self._waiters if last < oldest]
        self._waiters = [waiter for waiter in self._waiters if waiter[0] >= oldest]

    def _end(self, message: str, entries: Iterable[Entry], effects: Effects) -> None:
        effects.ended += self._state.end_all(entries, FinishReason.ABORT, message=message)
