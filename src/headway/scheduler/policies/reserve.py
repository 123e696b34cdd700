"""Blocks that an admission must leave available for requests that decode.

A request that decodes takes a block whenever its last block is full. If newcomers could take the last blocks, each step
would have to preempt a request, whose tokens are then computed twice. How many blocks running requests will still want
is unknown: most end long before their limit. So each rule starts careful and reserves less with each step; a preemption
makes it careful again. Too much care costs as well: fewer requests run, in more steps.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headway.config import SchedulerConfig
from headway.scheduler.policies.answer_lengths import AnswerLengths
from headway.scheduler.state.slot_table import SlotTable


class Reserve(Protocol):
    """How many blocks a newcomer may not touch."""

    def blocks(self, table: SlotTable, rows: NDArray[np.intp]) -> int:
        """Blocks that an admission must leave available while these rows decode; O(rows), some vector operations."""

    def step_launched(self) -> None:
        """A step with work in it was launched. Idle turns of the loop do not count: they prove nothing."""

    def preempted(self, table: SlotTable, rows: NDArray[np.intp]) -> None:
        """A request was preempted for want of blocks: the rule was too lax. These rows go on decoding."""

    def left(self, num_output: int) -> None:
        """A request that decoded has ended, for whatever reason, after so many tokens of output."""


class NoReserve:
    """Reserves no blocks."""

    def blocks(self, table: SlotTable, rows: NDArray[np.intp]) -> int:
        """No blocks: 0."""
        return 0

    def step_launched(self) -> None:
        """Nothing to decay."""

    def preempted(self, table: SlotTable, rows: NDArray[np.intp]) -> None:
        """Nothing to correct."""

    def left(self, num_output: int) -> None:
        """Nothing to learn."""


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

    def left(self, num_output: int) -> None:
        """Nothing to learn."""


class PeakReserve:
    """What the running requests will hold at the fullest moment to come, beyond what they hold now.

    Requests that run together do not end together: an early end makes room for the growth of the others. So the moment
    when all of them would hold the most is looked for, with answers as long as other answers became, and no longer than
    their limit. A block for each is added, as the order in which they end is a guess.

    share: of the tokens to come that count, at the start and after a preemption. decay: how much the share falls with
    each step, down to `floor`.
    """

    def __init__(self, block_size: int, share: float = 1.0, decay: float = 0.001, floor: float = 0.4) -> None:
        self._block_size = block_size
        self._start = share
        self._decay = decay
        self._floor = floor
        self._num_steps = 0
        self._lengths = AnswerLengths()

    @property
    def share(self) -> float:
        """The share, now."""
        return max(self._floor, self._start - self._num_steps * self._decay)  # a product: no rounding errors pile up

    def blocks(self, table: SlotTable, rows: NDArray[np.intp]) -> int:
        """The growth up to the fullest moment, and a block for each."""
        if not len(rows):
            return 0
        known, held, size = table.num_tokens[rows], table.num_blocks[rows], self._block_size
        to_come = self._lengths.to_come(known - table.num_prompt[rows])
        total = np.minimum(known + to_come * self.share, table.limit[rows])
        growth = np.maximum(((total + (size - 1)) / size).astype(np.intp) - held, 0)
        # At moment t the requests that grow so much hold t blocks more; the others have ended.
        num_left = np.bincount(growth)[::-1].cumsum()[::-1]
        held_then = np.bincount(growth, weights=held)[::-1].cumsum()[::-1] + num_left * np.arange(len(num_left))
        return int(held_then.max() - held_then[0]) + len(rows)

    def step_launched(self) -> None:
        """Reserve less."""
        self._num_steps += 1

    def preempted(self, table: SlotTable, rows: NDArray[np.intp]) -> None:
        """Start over."""
        self._num_steps = 0

    def left(self, num_output: int) -> None:
        """Learn how long answers become."""
        self._lengths.add(num_output)


def reserve_of(config: SchedulerConfig) -> Reserve:
    """The rule that is configured."""
    if config.reserve == "peak":
        return PeakReserve(config.block_size)
    return BlocksReserve() if config.reserve == "blocks" else NoReserve()
