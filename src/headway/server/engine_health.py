"""What the metrics tell of the engine process and of the wire to it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headway.client.engine_client import EngineClient
from headway.server.metrics import ENGINE, LABELS

_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")


class EngineHealth(Collector):
    """The state and the KV cache of the engine, its restarts, and messages that either side of the wire has dropped."""

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
        slots = GaugeMetricFamily("headway:num_slots", "Slots: the most requests that run at once.", labels=LABELS)
        slots.add_metric([self._model_name, ENGINE], self._client.config.max_num_seqs)
        yield slots
        yield self._sleep_state()
        yield self._cache_config()

    def _sleep_state(self) -> Metric:
        """An engine never sleeps; of an engine that is not healthy there is no state, which dashboards show as down."""
        state = GaugeMetricFamily(
            "headway:engine_sleep_state",
            "1 for the state of the engine, which is always awake; absent while it is not healthy.",
            labels=[*LABELS, "sleep_state"],
        )
        if self._client.why_unhealthy() is None:
            for name in _SLEEP_STATES:
                state.add_metric([self._model_name, ENGINE, name], int(name == "awake"))
        return state

    def _cache_config(self) -> Metric:
        config = self._client.config
        labels = {
            "num_gpu_blocks": config.num_blocks - 1,
            "block_size": config.block_size,
            "enable_prefix_caching": config.enable_prefix_caching,
        }
        info = GaugeMetricFamily(
            "headway:cache_config_info", "1; the labels are the sizes of the KV cache.", labels=[*LABELS, *labels]
        )
        info.add_metric([self._model_name, ENGINE, *map(str, labels.values())], 1)
        return info
