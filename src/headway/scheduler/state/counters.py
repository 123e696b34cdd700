"""What happened since the start."""

from __future__ import annotations

from dataclasses import dataclass

from headway.request import Request


@dataclass(slots=True)
class Counters:
    """Totals since the start; kept as we go. Tokens, unless the name says requests or preemptions.

    prompt_tokens, prefix_query_tokens, prefix_hit_tokens: of prompts when they start; a request counts once, whatever
        it computes again after a preemption. prefill_tokens: computed in prefill chunks, also again.
    prefix_queries: requests that start and read the prefix cache; the tokens of other requests are not in the numbers
        of the prefix cache. resumed_...: the same of requests that are admitted again after a preemption.
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
    prefix_queries: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    resumed_queries: int = 0
    resumed_query_tokens: int = 0
    resumed_hit_tokens: int = 0
    received_tokens: int = 0
    lost_pulls: int = 0
    leases_consumed: int = 0
    leases_released: int = 0
    leases_expired: int = 0
    leases_revoked: int = 0

    def start(self, request: Request, num_cached_tokens: int) -> None:
        """A request starts for the first time."""
        self.prompt_tokens += len(request.prompt)
        if request.reads_prefix_cache:
            self.prefix_queries += 1
            self.prefix_query_tokens += len(request.prompt)
            self.prefix_hit_tokens += num_cached_tokens

    def resume(self, request: Request, num_known_tokens: int, num_cached_tokens: int) -> None:
        """A request is admitted again after a preemption."""
        if request.reads_prefix_cache:
            self.resumed_queries += 1
            self.resumed_query_tokens += num_known_tokens
            self.resumed_hit_tokens += num_cached_tokens

    def catch_up(self, num_tokens: int, *, resumed: bool) -> None:
        """A request that prefills skips tokens that were cached since its admission."""
        if resumed:
            self.resumed_hit_tokens += num_tokens
        else:
            self.prefix_hit_tokens += num_tokens
