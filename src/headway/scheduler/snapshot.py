"""The state in numbers."""

from __future__ import annotations

from typing import NamedTuple


class Snapshot(NamedTuple):
    """The state in numbers, O(1) to make, immutable, published after every turn of the writer.

    Gauges (now): num_running to next_deadline. Counters (since the start): the rest.
    """

    step_id: int = 0
    num_running: int = 0  # slots that compute
    num_waiting: int = 0
    num_preparing: int = 0
    num_reserved: int = 0  # slots held for P/D, which compute nothing yet
    num_sending: int = 0  # prompts whose KV is on its way; they hold blocks, no slot
    num_receiving: int = 0  # requests with slot and blocks whose KV is on its way here
    num_in_flight: int = 0  # steps launched, result not yet applied
    num_slots: int = 0
    num_slots_spanned: int = 0  # highest slot in use or in quarantine + 1
    num_blocks_total: int = 0  # block 0 not counted
    num_blocks_free: int = 0
    num_blocks_evictable: int = 0
    num_blocks_lent: int = 0  # that D may read
    num_blocks_quarantined: int = 0  # of former requests, that a connector may still write to
    num_leases_unclaimed: int = 0  # of borrowers
    num_leases_claimed: int = 0
    num_slots_quarantined: int = 0  # of former requests, until the device acknowledges that: see `SlotAcknowledged`
    paused: bool = False
    holds_admissions: bool = False  # see `HoldAdmissions`
    next_deadline: float | None = None  # seconds, on the clock of `apply` and `schedule`
    num_requests_added: int = 0
    num_requests_ended: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0  # of the requests that have started, cached tokens included
    num_prefill_tokens: int = 0  # computed in prefill chunks, also again after a preemption
    num_generation_tokens: int = 0
    num_prefix_queries: int = 0  # requests that started, and read the prefix cache
    num_prefix_query_tokens: int = 0  # of their prompts
    num_prefix_hit_tokens: int = 0
    num_resumed_queries: int = 0  # admissions after a preemption, of requests that read the prefix cache
    num_resumed_query_tokens: int = 0  # of their prompts and outputs so far
    num_resumed_hit_tokens: int = 0
    num_received_tokens: int = 0  # of prompts whose KV came from another engine
    num_lost_pulls: int = 0  # prompts whose KV should have come, and were computed here
    num_leases_consumed: int = 0
    num_leases_released: int = 0  # D does not want them any more
    num_leases_expired: int = 0
    num_leases_revoked: int = 0

    @property
    def kv_cache_usage(self) -> float:
        """Share of the pool that requests refer to, 0 to 1."""
        if not self.num_blocks_total:
            return 0.0
        return 1.0 - (self.num_blocks_free + self.num_blocks_evictable) / self.num_blocks_total

    @property
    def has_work(self) -> bool:
        """Whether there is something that a step can be made of, or a step without its result."""
        num_to_admit = 0 if self.holds_admissions else self.num_waiting
        return bool(self.num_in_flight or (not self.paused and (self.num_running or num_to_admit)))
