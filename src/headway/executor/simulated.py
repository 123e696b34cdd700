"""A device that computes nothing: a formula gives the time of each step, and tokens are made up.

It serves to run, measure and break everything but the forward.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.executor.base import Executor, OnDone
from headway.executor.device_thread import DeviceThread
from headway.executor.made_up_logprobs import MadeUpLogprobs
from headway.scheduler.batch import Batch, IntArray, StepResult

_OVERSLEEP = 0.0003  # seconds that a sleep may last too long; a step ends with short waits instead
_STRIDE = 7919  # a prime, so that consecutive positions give different tokens


@dataclass(frozen=True, slots=True)
class StepTimeModel:
    """Seconds that a step takes: base_s + per_token_s * tokens + per_seq_s * requests."""

    base_s: float = 0.0
    per_token_s: float = 0.0
    per_seq_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("base_s", "per_token_s", "per_seq_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0 seconds, got {getattr(self, name)}")

    def seconds(self, batch: Batch) -> float:
        """Duration of this step."""
        return self.base_s + self.per_token_s * batch.num_tokens + self.per_seq_s * len(batch)


class StepTimes(NamedTuple):
    """When a step was launched, and when the device began and ended it, in seconds of `time.perf_counter`."""

    step_id: int
    launched: float
    began: float
    ended: float


class SimulatedTokens:
    """Tokens that depend on the request's prompt and the position alone, so that neither batching nor preemption
    changes an answer. prompt_logprobs: these are made up too, after `sample`."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._base: NDArray[np.int64] = np.zeros(max_num_seqs, dtype=np.int64)
        self.prompt_logprobs = MadeUpLogprobs(max_num_seqs, vocab_size)

    def sample(self, batch: Batch) -> IntArray:
        """int32 [sampling rows]."""
        for admission in batch.admissions:
            self._base[admission.slot] = zlib.crc32(admission.request.prompt.tobytes())
            self.prompt_logprobs.admit(admission)
        rows = np.flatnonzero(batch.samples)
        last = batch.positions[rows].astype(np.int64) + batch.num_new_tokens[rows]
        tokens = (self._base[batch.slots[rows]] + last * _STRIDE) % self._vocab_size
        return tokens.astype(np.int32)


def _wait_until(moment: float) -> None:
    """Wait until `moment`, in seconds of `time.perf_counter`; longer if the interpreter runs another thread then."""
    left = moment - time.perf_counter()
    if left > _OVERSLEEP:
        time.sleep(left - _OVERSLEEP)
    while time.perf_counter() < moment:
        time.sleep(0)


class _Device:
    """The state of one device thread. After a restart the new thread has a new state."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self.tokens = SimulatedTokens(max_num_seqs, vocab_size)
        self.launches: deque[float] = deque()  # launch times of steps that have not begun
        self.ended = 0.0


class SimulatedExecutor(Executor):
    """Sleeps instead of computing.

    A step begins when it was launched and the previous step has ended. It ends exactly when its time is over: if the
    thread wakes up late, the report is late, but not the next step.

    before_step: called on the device thread with each batch; a test may sleep or raise there.
    on_step: called on the device thread with the times of each step, before its result is reported.
    """

    max_in_flight = 2
    reads_same_step = True

    def __init__(
        self,
        step_time: StepTimeModel | None = None,
        *,
        max_num_seqs: int,
        vocab_size: int = 32000,
        before_step: Callable[[Batch], None] | None = None,
        on_step: Callable[[StepTimes], None] | None = None,
    ) -> None:
        self._step_time = step_time or StepTimeModel()
        self._max_num_seqs = max_num_seqs
        self._vocab_size = vocab_size
        self._before_step = before_step
        self._on_step = on_step
        self._device = _Device(max_num_seqs, vocab_size)
        self._thread: DeviceThread | None = None
        self._on_done: OnDone | None = None

    def start(self, on_done: OnDone) -> None:
        self._on_done = on_done
        self._device = _Device(self._max_num_seqs, self._vocab_size)
        self._thread = DeviceThread(partial(self._run, self._device), on_done)

    def launch(self, batch: Batch) -> None:
        assert self._thread is not None, "launch before start"
        self._device.launches.append(time.perf_counter())
        self._thread.launch(batch)

    def restart(self) -> bool:
        """Abandon the hanging thread, and start a new one."""
        assert self._on_done is not None, "restart before start"
        self.shutdown()
        self.start(self._on_done)
        return True

    def shutdown(self) -> None:
        if self._thread is not None:
            self._thread.stop(timeout=0.0)
            self._thread = None

    def _run(self, device: _Device, batch: Batch) -> StepResult:
        launched = device.launches.popleft()
        tokens = device.tokens.sample(batch)
        if self._before_step is not None:
            self._before_step(batch)
        began = max(device.ended, launched)
        ended = device.ended = began + self._step_time.seconds(batch)
        _wait_until(ended)
        if self._on_step is not None:
            self._on_step(StepTimes(batch.step_id, launched, began, ended))
        return StepResult(batch.step_id, tokens, prompt_logprobs=device.tokens.prompt_logprobs.judge(batch))
