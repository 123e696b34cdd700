"""Blocks that an admission must leave available for requests that decode.

A request that decodes takes a block whenever its last block is full. If newcomers could take the last blocks, each step
would have to preempt a request, whose tokens are then computed twice. How many blocks running requests will still want
is unknown: most end long before their limit. So each rule starts careful and reserves less with each step; a preemption
makes it careful again.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headway.config import SchedulerConfig
from headway.scheduler.state.slot_table import SlotTable

TOKENS_AHEAD = 20  # per request, beyond the output so far: else a new estimate would be too low at once


class Reserve(Protocol):
    """How many blocks a newcomer may not touch."""

    def blocks(self, table: SlotTable, rows: NDArray[np.intp]) -> int:
        """Blocks that an admission must leave available while these rows decode; O(rows), some vector operations."""

    def step_launched(self) -> None:
        """A step with work in it was launched. Idle turns of the loop do not count: they prove nothing."""

    def preempted(self, table: SlotTable, rows: NDArray[np.intp]) -> None:
        """A request was preempted for want of blocks: the rule was too lax. These rows go on decoding."""


class NoReserve:
    """Reserves no blocks."""

    def blocks(self, table: SlotTable, rows: NDArray[np.intp]) -> int:
        """No blocks: 0."""
        return 0

    def step_launched(self) -> None:
        """Nothing to decay."""

    def preempted(self, table: SlotTable, rows: NDArray[np.intp]) -> None:
        """Nothing to correct."""


class BlocksReserve:
    """A number of blocks for each request that decodes, whatever it may still generate.

    per_request: blocks each, at the start and after a preemption. decay: how much that falls with each step, down to 0.
    """

    def __init__(self, per_request: float = 16.0, decay: float = 0.025) -> None:
        self._start = per_request
        self._decay = decay
        self._num_steps = 0

    @property
    def per_request(self) -> float:
        """Blocks for each request that decodes, now."""
        return max(0.0, self._start - self._num_steps * self._decay)  # a product: no rounding errors pile up

    def blocks(self, table: SlotTable, rows: NDArray[np.intp]) -> int:
        """`per_request` for each row, together, rounded up."""
        return math.ceil(len(rows) * self.per_request)

    def step_launched(self) -> None:
        """Reserve less."""
        self._num_steps += 1

    def preempted(self, table: SlotTable, rows: NDArray[np.intp]) -> None:
        """Start over."""
        self._num_steps = 0


class RatioReserve:
    """A share of the tokens that decoding requests may still generate.

    ratio: the share at the start. decay: how much it falls with each step, down to `floor`.
    horizon: tokens per request that count at most; else one huge max_tokens would shut out all newcomers.
    """

    def __init__(
        self,
        block_size: int,
        ratio: float = 0.7,
        decay: float = 0.001,
        floor: float = 0.1,
        horizon: int = 4096,
    ) -> None:
        self._block_size = block_size
        self._start = ratio
        self._decay = decay
        self._floor = floor
        self._horizon = horizon
        self._num_steps = 0

    @property
    def ratio(self) -> float:
        """The share, now."""
        return max(self._floor, self._start - self._num_steps * self._decay)  # a product: no rounding errors pile up

    def blocks(self, table: SlotTable, rows: NDArray[np.intp]) -> int:
        """The share of all tokens that these rows may still generate, in blocks, rounded up."""
        to_come = np.minimum(table.limit[rows] - table.num_tokens[rows], self._horizon)
        return math.ceil(int(to_come.sum(dtype=np.int64)) * self.ratio / self._block_size)

    def step_launched(self) -> None:
        """Reserve less."""
        self._num_steps += 1

    def preempted(self, table: SlotTable, rows: NDArray[np.intp]) -> None:
        """Learn from the rows that go on: they will use at least the share of their allowed output that they have used
        by now, and a little more. The share never falls by this, and it is at most 1."""
        num_prompt = table.num_prompt[rows]
        allowed = int((table.limit[rows] - num_prompt).sum(dtype=np.int64))
        used = int((table.num_tokens[rows] - num_prompt).sum(dtype=np.int64)) + TOKENS_AHEAD * len(rows)
        learnt = min(1.0, used / allowed) if allowed else 0.0
        self._start = max(self.ratio, learnt)
        self._num_steps = 0


def reserve_of(config: SchedulerConfig) -> Reserve:
    """The rule that is configured."""
    if config.reserve == "ratio":
        return RatioReserve(config.block_size)
    return BlocksReserve() if config.reserve == "blocks" else NoReserve()
