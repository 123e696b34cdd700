"""What the metrics tell of the state of each engine: read from its last snapshot."""

from __future__ import annotations

from collections.abc import Iterator

from headway.client.engine_client import EngineClient
from headway.server.metrics.per_engine import PerEngine, Sampled, counter, gauge


class EngineNumbers(PerEngine):
    """The numbers that the engine counts."""

    def of(self, engine: EngineClient) -> Iterator[Sampled]:
        now = engine.snapshot
        waiting = now.num_waiting + now.num_preparing  # as in vLLM: the sum over all reasons
        yield gauge("num_requests_running", "Requests that have a slot.", now.num_running)
        yield gauge("num_requests_waiting", "Requests that wait for a slot or are prepared.", waiting)
        yield gauge("num_requests_preparing", "Requests that a preprocess job works on.", now.num_preparing)
        yield gauge(
            "num_requests_reserved", "Requests with slot and blocks that compute nothing yet.", now.num_reserved
        )
        yield gauge("num_requests_sending", "Requests whose KV is on its way to a decode engine.", now.num_sending)
        yield gauge(
            "num_requests_receiving", "Requests whose KV is on its way from a prefill engine.", now.num_receiving
        )
        yield gauge("kv_blocks_lent", "KV blocks that other engines may read.", now.num_blocks_lent)
        yield gauge(
            "kv_blocks_quarantined",
            "KV blocks of former requests that a connector may still write to.",
            now.num_blocks_quarantined,
        )
        yield gauge("engine_paused", "1 while the engine is paused, else 0.", int(now.paused))
        yield gauge(
            "kv_cache_usage_perc", "Share of the KV-cache blocks that requests refer to, 0 to 1.", now.kv_cache_usage
        )
        yield counter(
            "num_preemptions", "Requests that gave up their blocks and were computed again.", now.num_preemptions
        )
        yield counter("prompt_tokens", "Prompt tokens, computed or found in the prefix cache.", now.num_prompt_tokens)
        yield counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", now.num_prefix_query_tokens)
        yield counter("prefix_cache_hits", "Tokens found in the prefix cache.", now.num_prefix_hit_tokens)
        yield counter("prompt_tokens_cached", "Prompt tokens found in the prefix cache.", now.num_prefix_hit_tokens)
        yield counter("lost_pulls", "Prompts whose KV should have come from another engine.", now.num_lost_pulls)
        yield gauge(
            "num_requests_waiting_by_reason",
            "Requests that wait, by the reason.",
            {("capacity",): now.num_waiting, ("deferred",): now.num_preparing},
            ("reason",),
        )
        yield counter(
            "prompt_tokens_by_source",
            "Prompt tokens, by their source.",
            {
                ("local_compute",): now.num_prompt_tokens - now.num_prefix_hit_tokens - now.num_received_tokens,
                ("local_cache_hit",): now.num_prefix_hit_tokens,
                ("external_kv_transfer",): now.num_received_tokens,
            },
            ("source",),
        )
        yield counter(
            "prompt_tokens_cached_by_source",
            "Prompt tokens found in a cache, by the memory that has it.",
            {("device",): now.num_prefix_hit_tokens},
            ("source",),
        )
