"""Headway's scheduler as the workloads see it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headway import __version__
from headway.config import ReserveName, SchedulerConfig
from headway.executor.simulated import SimulatedTokens
from headway.managers.door import Door
from headway.model_limits import ModelLimits
from headway.request import NewRequest, Request
from headway.sampling import SamplingParams
from headway.scheduler import (
    AbortRequests,
    AddRequest,
    Batch,
    Effects,
    Logprobs,
    Policies,
    ResetPrefixCache,
    Scheduler,
    StepResult,
)
from headway.scheduler.policies.reserve import PeakReserve
from headway.scheduler.state.slot_table import SlotTable
from headway.token_ids import pack
from headway_lab.schedulers.workloads import BLOCK_SIZE, ENDLESS, FEATURES, VOCAB_SIZE, Capacity

NO_POOL_IS_LARGER = 2**40  # blocks

NAME = "headway"
VERSION = __version__


class _WholePool(PeakReserve):
    """Counts what the default rule counts, and lets no newcomer in."""

    def blocks(self, table: SlotTable, rows: NDArray[np.intp]) -> int:
        return super().blocks(table, rows) + NO_POOL_IS_LARGER


class HeadwaySystem:
    """The door's check and packing, and the core.

    reserve: the reserve policy; None: the default of the configuration.

    With all features, a slot stays free: so in every step waiting requests wait because of the reserve policy, which
    counts what it would reserve, and reserves all.
    """

    def __init__(self, capacity: Capacity, reserve: ReserveName = "peak") -> None:
        config = SchedulerConfig(
            max_num_seqs=capacity.max_num_seqs + bool(capacity.features),
            max_num_batched_tokens=capacity.max_num_batched_tokens,
            max_model_len=capacity.max_model_len,
            block_size=BLOCK_SIZE,
            num_blocks=capacity.num_blocks,
            enable_prefix_caching=capacity.prefix_caching,
            reserve=reserve,
        )
        policies = Policies.of(config)
        if capacity.features:
            policies = replace(policies, reserve=_WholePool(BLOCK_SIZE))
        self._scheduler = Scheduler(config, policies=policies)
        self._door = Door(config, ModelLimits(VOCAB_SIZE), max_waiting=0)
        self._tokens = SimulatedTokens(config.max_num_seqs, VOCAB_SIZE - len(FEATURES["stop_token_ids"]))
        self._sampling: SamplingParams | None = None  # of every request, where all features are wanted
        if capacity.features:
            self._sampling = SamplingParams(max_tokens=ENDLESS, ignore_eos=True, **capacity.features)

    def pack(self, tokens: NDArray[np.int32]) -> bytes:
        """The prompt as the API process sends it: the bytes of an int32 array."""
        return tokens.tobytes()

    def create(self, name: str, prompt: bytes | list[int], max_tokens: int, priority: int) -> Request:
        tokens = np.frombuffer(prompt, np.int32) if isinstance(prompt, bytes) else pack(prompt, VOCAB_SIZE)
        if self._sampling is not None:
            new = NewRequest(request_id=name, prompt=tokens, sampling=self._sampling, priority=priority)
        else:
            sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
            new = NewRequest(request_id=name, prompt=tokens, sampling=sampling)
        return self._door.make_request(new)

    def add(self, request: Request) -> None:
        self._scheduler.apply(AddRequest(request))

    def schedule(self) -> Batch | None:
        return self._scheduler.schedule()

    def size(self, batch: Batch) -> tuple[int, int]:
        return len(batch), batch.num_tokens

    def compute(self, batch: Batch) -> StepResult:
        tokens = self._tokens.sample(batch)
        return StepResult(batch.step_id, tokens, _logprobs(tokens) if self._sampling is not None else None)

    def update(self, batch: Batch, result: StepResult) -> Effects:
        """Apply the result and make a snapshot, since other schedulers make their statistics here too."""
        effects = self._scheduler.apply(result)
        self._scheduler.snapshot()
        return effects

    def num_ended(self, outcome: Effects) -> int:
        return len(outcome.ended)

    def end(self, request: Request) -> None:
        self._scheduler.apply(AbortRequests((request.uid,)))

    def forget_cached(self) -> None:
        self._scheduler.ask(ResetPrefixCache(reply=0))

    @property
    def num_preemptions(self) -> int:
        return self._scheduler.snapshot().num_preemptions


def _logprobs(tokens: NDArray[np.int32]) -> Logprobs:
    rows = np.arange(len(tokens), dtype=np.int32)
    top_ids = np.repeat(tokens[:, None], FEATURES["logprobs"], axis=1)
    top = np.full(top_ids.shape, -1.0, dtype=np.float32)
    return Logprobs(rows, top[:, 0].copy(), np.ones_like(rows), top_ids, top)
