"""When a request gets its blocks."""

from __future__ import annotations

from typing import ClassVar, Protocol

from headway.config import SchedulerConfig


class Allocation(Protocol):
    """How many blocks a newcomer takes. grows: whether it takes more later, and others may have to make room."""

    grows: ClassVar[bool]

    def blocks_at_admission(self, config: SchedulerConfig, num_known_tokens: int, limit: int) -> int:
        """Blocks to hold from admission on, for a request of so many known tokens that ends at `limit` tokens."""


class DynamicAllocation:
    """Blocks for the known tokens; more as the output grows, by preemption of other requests if need be.

    All blocks of a prompt are taken at once, also when it is computed in chunks. So a chunk never stops for want of
    blocks, and two half-computed prompts cannot block each other. Places for draft tokens are taken ahead.
    """

    grows: ClassVar[bool] = True

    def blocks_at_admission(self, config: SchedulerConfig, num_known_tokens: int, limit: int) -> int:
        """Blocks for the known tokens."""
        return config.blocks_for(min(num_known_tokens + config.num_speculative_tokens, limit))


class StaticAllocation:
    """Blocks for prompt and max_tokens from the start. No request is ever preempted for want of blocks; fewer run."""

    grows: ClassVar[bool] = False

    def blocks_at_admission(self, config: SchedulerConfig, num_known_tokens: int, limit: int) -> int:
        """Blocks for the longest the request can become."""
        return config.blocks_for(limit)
