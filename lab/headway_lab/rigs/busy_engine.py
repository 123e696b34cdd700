"""An engine under constant load: requests decode on a simulated device, which notes the times of its steps."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from headway.config import SchedulerConfig, SchedulerName
from headway.engine.engine import Engine
from headway.executor.simulated import SimulatedExecutor, StepTimeModel, StepTimes
from headway.managers import MANAGERS, Manager
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.scheduler import Effects

VOCAB_SIZE = 32_000
MAX_MODEL_LEN = 8_192
BLOCK_SIZE = 16
_PATIENCE = 120.0  # seconds for what is waited for; far more than a busy machine takes


class BusyEngine:
    """An engine with a simulated device, for the time of a `with` block.

    slots: the most requests that run at once. max_tokens: output tokens of the longest request; the pool has blocks for
        such a request in every slot.
    steps: the times of every step so far, in order.
    """

    def __init__(
        self,
        scheduler: SchedulerName,
        slots: int,
        step_s: float,
        *,
        prompt_tokens: int,
        max_tokens: int,
        async_scheduling: bool = True,
        max_waiting: int = 4096,
        on_effects: Callable[[Effects], None] = lambda _: None,
    ) -> None:
        config = SchedulerConfig(
            max_num_seqs=slots,
            max_num_batched_tokens=16_384,
            max_model_len=MAX_MODEL_LEN,
            block_size=BLOCK_SIZE,
            num_blocks=1 + slots * math.ceil((prompt_tokens + max_tokens) / BLOCK_SIZE) + MAX_MODEL_LEN // BLOCK_SIZE,
            reserve="none",  # there are blocks for all requests
        )
        self.steps: list[StepTimes] = []
        self.depth = 2 if async_scheduling else 1
        self.manager: Manager = MANAGERS[scheduler](config, max_waiting=max_waiting)
        device = SimulatedExecutor(
            StepTimeModel(base_s=step_s), max_num_seqs=slots, vocab_size=VOCAB_SIZE, on_step=self.steps.append
        )
        self.engine = Engine(self.manager, device, on_effects, async_scheduling=async_scheduling)
        self.max_tokens = max_tokens
        self._prompt_tokens = prompt_tokens
        self._rng = np.random.default_rng(slots)

    def __enter__(self) -> Self:
        self.engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.shutdown()

    def prompt(self) -> NDArray[np.int32]:
        """A random prompt, packed."""
        return self._rng.integers(1, VOCAB_SIZE, self._prompt_tokens, dtype=np.int32)

    def add(self, request_id: str, max_tokens: int) -> int:
        """Add a request; returns its uid."""
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        return self.engine.add(NewRequest(request_id=request_id, prompt=self.prompt(), sampling=sampling))

    def gaps(self, steps: Sequence[StepTimes]) -> list[float]:
        """Seconds that the device was idle before each of these consecutive steps, except the first."""
        return [step.began - before.ended for before, step in itertools.pairwise(steps)]

    def turns(self, steps: Sequence[StepTimes]) -> list[float]:
        """Seconds from the end of each of these consecutive steps to the launch that follows its result."""
        return [later.launched - step.ended for step, later in zip(steps, steps[self.depth :])]

    def wait_until_admitted(self, count: int) -> None:
        """Wait until `count` requests have been added and none of them waits in the queue. Raises RuntimeError after
        _PATIENCE seconds."""

        def are_in() -> bool:
            snapshot = self.engine.manager.snapshot()
            return snapshot.num_requests_added >= count and not snapshot.num_waiting

        self._wait_until(are_in, f"{count} requests are admitted")

    def wait_for_steps(self, first: int, count: int) -> None:
        """Wait until `steps` has `count` steps from `first` on, and the few more that `gaps` and `turns` need."""
        self._wait_until(lambda: len(self.steps) >= first + count + self.depth, f"{count} steps are made")

    def _wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + _PATIENCE
        while not is_so():
            if time.monotonic() > until:
                raise RuntimeError(f"not within {_PATIENCE:g} s: {what}; now {self.engine.manager.snapshot()}")
            time.sleep(0.002)
