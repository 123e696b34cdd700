"""What the metrics tell of the engine processes and of the wire to them."""

from __future__ import annotations

from collections.abc import Iterator

from headway.client.engine_client import EngineClient
from headway.server.metrics.per_engine import PerEngine, Sampled, counter, gauge

WIRE_ERRORS = (
    "wire_errors",
    "Messages between API process and engine process that were dropped, by the side that dropped them.",
    ("side",),
)
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")


class EngineHealth(PerEngine):
    """The state and the KV cache of each engine, its restarts, and messages that it has dropped."""

    def of(self, engine: EngineClient) -> Iterator[Sampled]:
        config = engine.config
        yield counter("engine_restarts", "How often the engine process was started again.", engine.num_restarts)
        name, text, labels = WIRE_ERRORS
        yield counter(name, text, {("engine",): engine.num_engine_wire_errors}, labels)
        yield gauge("num_slots", "Slots: the most requests that run at once.", config.max_num_seqs)
        awake = engine.why_unhealthy() is None  # of an engine that is not well there is no state: it is shown as down
        yield gauge(
            "engine_sleep_state",
            "1 for the state of the engine, which is always awake; absent while it is not healthy.",
            {(name,): int(name == "awake") for name in _SLEEP_STATES} if awake else {},
            ("sleep_state",),
        )
        sizes = {
            "num_gpu_blocks": config.num_blocks - 1,
            "block_size": config.block_size,
            "enable_prefix_caching": config.enable_prefix_caching,
        }
        yield gauge(
            "cache_config_info",
            "1; the labels are the sizes of the KV cache.",
            {tuple(map(str, sizes.values())): 1},
            tuple(sizes),
        )
