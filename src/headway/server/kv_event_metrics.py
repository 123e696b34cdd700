"""What the metrics tell of KV events, which the engine publishes for routers."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headway.client.engine_client import EngineClient
from headway.server.metrics import ENGINE, LABELS


class KVEventMetrics(Collector):
    """Batches of KV events, if the engine publishes any."""

    def __init__(self, model_name: str, client: EngineClient) -> None:
        self._model_name = model_name
        self._client = client

    def collect(self) -> Iterator[Metric]:
        counts = self._client.kv_events
        if counts is None:
            return
        batches = CounterMetricFamily(
            "headway:kv_event_batches",
            "Batches of KV events, by whether they were published, or lost because too many waited.",
            labels=[*LABELS, "outcome"],
        )
        for outcome, number in (("published", counts.published), ("lost", counts.lost)):
            batches.add_metric([self._model_name, ENGINE, outcome], number)
        yield batches
