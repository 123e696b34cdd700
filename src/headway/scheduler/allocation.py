"""When a request gets its blocks."""

from __future__ import annotations

from typing import Protocol

from headway.config import SchedulerConfig


class Allocation(Protocol):
    """How many blocks a newcomer takes, and how many must stay available for those already decoding."""

    def blocks_at_admission(self, config: SchedulerConfig, num_known_tokens: int, limit: int) -> int:
        """Blocks to hold from admission on, for a request of so many known tokens that ends at `limit` tokens."""

    def reserve(self, num_decoding: int) -> int:
        """Blocks that an admission must leave available when so many requests decode."""


class DynamicAllocation:
    """Blocks for what is known; more as the output grows, by preemption of others if need be.

    All blocks of a prompt are taken at once, also when it is computed in chunks: chunks then never stop for want of
    blocks, and two half-computed prompts cannot block each other. The reserve lets every decoding request cross one
    block boundary before somebody has to be preempted.
    """

    def blocks_at_admission(self, config: SchedulerConfig, num_known_tokens: int, limit: int) -> int:
        """Blocks for the known tokens."""
        return config.blocks_for(num_known_tokens)

    def reserve(self, num_decoding: int) -> int:
        """One block each."""
        return num_decoding


class StaticAllocation:
    """Blocks for prompt and max_tokens from the start. Nobody is ever preempted; fewer requests run."""

    def blocks_at_admission(self, config: SchedulerConfig, num_known_tokens: int, limit: int) -> int:
        """Blocks for the longest the request can become."""
        return config.blocks_for(limit)

    def reserve(self, num_decoding: int) -> int:
        """None: everybody holds all they will ever need."""
        return 0
