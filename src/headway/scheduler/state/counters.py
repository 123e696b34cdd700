"""What happened since the start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Totals since the start; kept as we go. Tokens, unless the name says requests or preemptions.

    prompt_tokens, prefix_query_tokens, prefix_hit_tokens: of prompts when they start; a request counts once, whatever
        it computes again after a preemption. prefill_tokens: computed in prefill chunks, also again.
    received_tokens: of prompts whose KV came from P. lost_pulls: prompts whose KV should have come, and were computed
        here.
    leases_...: leases of borrowers, by their ends: D has read all, D does not want it any more, its time was over, or
        it was taken back.
    """

    requests_added: int = 0
    requests_ended: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    prefill_tokens: int = 0
    generation_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    received_tokens: int = 0
    lost_pulls: int = 0
    leases_consumed: int = 0
    leases_released: int = 0
    leases_expired: int = 0
    leases_revoked: int = 0

    def start(self, num_prompt_tokens: int, num_cached_tokens: int) -> None:
        """A request starts for the first time."""
        self.prompt_tokens += num_prompt_tokens
        self.prefix_query_tokens += num_prompt_tokens
        self.prefix_hit_tokens += num_cached_tokens
