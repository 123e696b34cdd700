"""The contract between the writer loop and an executor, which computes steps.

An executor runs steps in launch order, one at a time, on a thread (or device) of its own, and reports each step exactly
once. For each slot it keeps a mirror of the block table, the last sampled token and the sampling state. Batches bring
all of these; an executor never sees scheduling state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from headway.placement import Placement
from headway.scheduler.batch import Batch, StepResult
from headway.transfer.memory import KVMemory

OnDone = Callable[[StepResult], None]


class DeviceLostError(RuntimeError):
    """There is no device any more. The message says all: no trace is needed."""


class Executor(ABC):
    """Runs batches. `launch` never blocks; the result arrives by `on_done`, called on the executor's own thread."""

    max_in_flight: int = 1  # the most steps without a result; 2: one step waits while one runs
    reads_same_step: bool = False  # the KV of all rows of a step is written before a row reads it (SchedulerConfig)
    placement = Placement()

    def kv_memory(self) -> KVMemory | None:
        """The memory of the KV cache, if other engines can read it: on a CPU, for a role that moves KV. None: they
        cannot. It is of no use after `shutdown`."""
        return None

    @abstractmethod
    def start(self, on_done: OnDone) -> None:
        """Start. `on_done` is called once per launched batch, in launch order. A step that raises inside the executor
        is reported as a StepResult with `error` set, never as an exception."""

    @abstractmethod
    def launch(self, batch: Batch) -> None:
        """Queue one step. At most `max_in_flight` steps may be without a result."""

    @abstractmethod
    def restart(self) -> bool:
        """Give up the steps in flight. True: the executor is usable again, with empty slots, and will never report the
        abandoned steps. False: the executor is lost, and the engine must stop."""

    def failure(self) -> str | None:
        """Why no step can be computed any more, in one line: the engine must stop. None while steps can be computed."""
        return None

    @abstractmethod
    def shutdown(self) -> None:
        """Stop and free the device. Steps not yet reported are dropped. Idempotent."""
