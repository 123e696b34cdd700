"""The contract between the writer loop and whatever computes a step.

An executor runs steps in launch order, one at a time, on a thread (or device) of its own, and reports each exactly
once. It keeps per slot what the device needs: a mirror of the block tables, the last sampled token, the sampling
state. It learns of all of them through batches alone and never sees scheduling state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from headway.scheduler.batch import Batch, StepResult

OnDone = Callable[[StepResult], None]


class Executor(ABC):
    """Runs batches. `launch` never blocks; the result arrives by `on_done`, called on the executor's own thread."""

    max_in_flight: int = 1  # steps it takes before the first of them has answered; 2: one waits while one runs

    @abstractmethod
    def start(self, on_done: OnDone) -> None:
        """Begin. `on_done` is called once per launched batch, in launch order; a step that raises inside the
        executor is reported as a StepResult with `error` set, never as an exception."""

    @abstractmethod
    def launch(self, batch: Batch) -> None:
        """Queue one step. The caller keeps at most `max_in_flight` unanswered."""

    @abstractmethod
    def restart(self) -> bool:
        """Give up the step that does not answer. True: the executor is usable again, with empty slots, and the
        abandoned steps will never be reported. False: it is not, and the engine must stop."""

    @abstractmethod
    def shutdown(self) -> None:
        """Stop and free the device. Steps not yet reported are dropped. Idempotent."""
