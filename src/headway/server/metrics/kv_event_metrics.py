"""What the metrics tell of KV events, which engines publish for routers."""

from __future__ import annotations

from collections.abc import Iterator

from headway.client.engine_client import EngineClient
from headway.server.metrics.per_engine import PerEngine, Sampled, counter


class KVEventMetrics(PerEngine):
    """Batches of KV events, of engines that publish any."""

    def of(self, engine: EngineClient) -> Iterator[Sampled]:
        if (counts := engine.kv_events) is not None:
            yield counter(
                "kv_event_batches",
                "Batches of KV events, by whether they were published, or lost because too many waited.",
                {("published",): counts.published, ("lost",): counts.lost},
                ("outcome",),
            )
