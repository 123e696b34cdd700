"""Metrics for Prometheus, under Headway's names and under the names that dashboards and autoscalers for vLLM use.

Gauges and engine counters are read from the engine's last snapshot, for each page. The other metrics are counted when
the engine's messages come. Every family appears twice, as `headway:...` and as `vllm:...`, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headway.client.token_processor import Processed
from headway.outputs import RequestMetrics
from headway.request import FinishReason
from headway.wire.to_client import Snapshot

PREFIX = "headway"
ALIAS = "vllm"

_FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_PER_TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class ServerMetrics:
    """An `Observer` of the engine client. One event loop writes; any thread may read the page."""

    def __init__(self, model_name: str, snapshot: Callable[[], Snapshot]) -> None:
        registry = self._inner = CollectorRegistry()
        self._registry = CollectorRegistry()
        self._registry.register(_TwoNames(registry))
        registry.register(_EngineNumbers(model_name, snapshot))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(f"{PREFIX}:{name}", text, ["model_name"], registry=registry, buckets=buckets)
            return family.labels(model_name)

        self._first_token = histogram(
            "time_to_first_token_seconds", "From the arrival of a request to its first token.", _FIRST_TOKEN_BUCKETS
        )
        self._inter_token = histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", _PER_TOKEN_BUCKETS
        )
        self._per_token = histogram(
            "request_time_per_output_token_seconds",
            "Mean time per output token after the first, of each finished request.",
            _PER_TOKEN_BUCKETS,
        )
        self._latency = histogram(
            "e2e_request_latency_seconds", "From the arrival of a request to its last token.", _REQUEST_BUCKETS
        )
        self._generated = Counter(
            f"{PREFIX}:generation_tokens", "Tokens generated.", ["model_name"], registry=registry
        ).labels(model_name)
        finished = Counter(
            f"{PREFIX}:request_success",
            "Answers that were completed, by the reason of their end.",
            ["model_name", "finished_reason"],
            registry=registry,
        )
        self._finished = {reason: finished.labels(model_name, reason.value) for reason in FinishReason}

    def add(self, collector: Collector) -> None:
        """Put more families on the page."""
        self._inner.register(collector)

    def processed(self, processed: Processed) -> None:
        """Count the tokens, times and ends of one message of the engine."""
        if processed.num_tokens:
            self._generated.inc(processed.num_tokens)
        for seconds in processed.first_token_latencies:
            self._first_token.observe(seconds)
        for seconds in processed.inter_token_latencies:
            self._inter_token.observe(seconds)
        for delta in processed.deltas:
            if delta.finish_reason is not None:
                self._finished[delta.finish_reason].inc()
            if delta.finished:
                self._observe_end(delta.metrics, delta.num_tokens)
        for output in processed.outputs:
            for answer in output.outputs:
                if answer.finish_reason is not None:
                    self._finished[answer.finish_reason].inc()
            self._observe_end(output.metrics, max(len(answer.token_ids) for answer in output.outputs))

    def _observe_end(self, metrics: RequestMetrics, num_tokens: int) -> None:
        if metrics.finished_time is not None:
            self._latency.observe(metrics.finished_time - metrics.arrival_time)
        if metrics.first_token_time is not None and metrics.last_token_time is not None and num_tokens > 1:
            self._per_token.observe((metrics.last_token_time - metrics.first_token_time) / (num_tokens - 1))

    def page(self) -> bytes:
        """All metrics, in Prometheus's text format."""
        return generate_latest(self._registry)


class _EngineNumbers(Collector):
    """The numbers that the engine counts, read from its last snapshot."""

    def __init__(self, model_name: str, snapshot: Callable[[], Snapshot]) -> None:
        self._model_name = model_name
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot()
        gauges = {
            "num_requests_running": ("Requests that have a slot.", now.num_running),
            "num_requests_waiting": ("Requests that wait for a slot.", now.num_waiting),
            "num_requests_preparing": ("Requests that a preprocess job works on.", now.num_preparing),
            "num_requests_reserved": ("Requests with slot and blocks that compute nothing yet.", now.num_reserved),
            "num_requests_sending": ("Requests whose KV is on its way to a decode engine.", now.num_sending),
            "engine_paused": ("1 while the engine is paused, else 0.", int(now.paused)),
            "kv_cache_usage_perc": ("Share of the KV-cache blocks that requests refer to, 0 to 1.", now.kv_cache_usage),
        }
        counters = {
            "num_preemptions": ("Requests that gave up their blocks and were computed again.", now.num_preemptions),
            "prompt_tokens": (
                "Prompt tokens, computed or found in the prefix cache.",
                now.num_prompt_tokens + now.num_prefix_hit_tokens,
            ),
            "prefix_cache_queries": ("Tokens looked up in the prefix cache.", now.num_prefix_query_tokens),
            "prefix_cache_hits": ("Tokens found in the prefix cache.", now.num_prefix_hit_tokens),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(f"{PREFIX}:{name}", text, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(f"{PREFIX}:{name}", text, labels=["model_name"])
            counter.add_metric([self._model_name], value)
            yield counter


class _TwoNames(Collector):
    """Every family of `registry`, and a copy of it under the other prefix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
            alias = Metric(_alias(family.name), family.documentation, family.type, family.unit)
            alias.samples = [sample._replace(name=_alias(sample.name)) for sample in family.samples]
            yield alias


def _alias(name: str) -> str:
    return ALIAS + name.removeprefix(PREFIX)
