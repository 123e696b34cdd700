"""What the metrics tell of the engine process and of the wire to it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headway.client.engine_client import EngineClient
from headway.server.metrics import ENGINE, LABELS


class EngineHealth(Collector):
    """Restarts of the engine process, and messages that either side of the wire has dropped."""

    def __init__(self, model_name: str, client: EngineClient) -> None:
        self._model_name = model_name
        self._client = client

    def collect(self) -> Iterator[Metric]:
        restarts = CounterMetricFamily(
            "headway:engine_restarts", "How often the engine process was started again.", labels=LABELS
        )
        restarts.add_metric([self._model_name, ENGINE], self._client.num_restarts)
        yield restarts
        dropped = CounterMetricFamily(
            "headway:wire_errors",
            "Messages between API process and engine process that were dropped, by the side that dropped them.",
            labels=[*LABELS, "side"],
        )
        dropped.add_metric([self._model_name, ENGINE, "engine"], self._client.num_engine_wire_errors)
        dropped.add_metric([self._model_name, ENGINE, self._client.wire_errors.side], self._client.wire_errors.count)
        yield dropped
