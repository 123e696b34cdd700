"""Metrics for Prometheus, under Headway's names and under the names that dashboards and autoscalers for vLLM use.

Gauges and engine counters are read from the engine's last snapshot, for each page. The other metrics are counted when
the engine's messages come. Every family appears twice, as `headway:...` and as `vllm:...`, with the same numbers.
Only the families of HTTP and of the server's process have no prefix, as in vLLM. The label `engine` is always "0": a
server has one engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headway.client.token_processor import Ended, Processed
from headway.request import FinishReason
from headway.wire.to_client import Snapshot

PREFIX = "headway"
ALIAS = "vllm"
LABELS = ("model_name", "engine")
ENGINE = "0"

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
_STEP_BUCKETS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
_COUNT_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0)
_HTTP_BUCKETS = (0.1, 0.5, 1.0)
_PROBES = frozenset({"/metrics", "/health", "/ping", "/version"})  # no clients: they would hide the share of errors


def _token_buckets(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `limit`."""
    buckets: list[float] = []
    scale = 1
    while scale <= limit:
        buckets += [float(scale * digit) for digit in (1, 2, 5) if scale * digit <= limit]
        scale *= 10
    return tuple(buckets)


class ServerMetrics:
    """An `Observer` of the engine client. One event loop writes; any thread may read the page."""

    def __init__(self, model_name: str, snapshot: Callable[[], Snapshot], max_model_len: int) -> None:
        registry = self._inner = CollectorRegistry()
        self._registry = CollectorRegistry()
        self._registry.register(_TwoNames(registry))
        registry.register(_EngineNumbers(model_name, snapshot))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(f"{PREFIX}:{name}", text, LABELS, registry=registry, buckets=buckets)
            return family.labels(model_name, ENGINE)

        tokens = _token_buckets(max_model_len)

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
        self._queue = histogram("request_queue_time_seconds", "From arrival to the first slot.", _REQUEST_BUCKETS)
        self._prefill = histogram("request_prefill_time_seconds", "From slot to first token.", _REQUEST_BUCKETS)
        self._decode = histogram("request_decode_time_seconds", "From first to last token.", _REQUEST_BUCKETS)
        self._inference = histogram("request_inference_time_seconds", "From slot to last token.", _REQUEST_BUCKETS)
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", tokens)
        self._computed = histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens that were not in the prefix cache.", tokens
        )
        self._output = histogram("request_generation_tokens", "Output tokens of an answer.", tokens)
        self._longest = histogram(
            "request_max_num_generation_tokens", "Output tokens of the longest answer of a request.", tokens
        )
        self._n = histogram("request_params_n", "The n of a request.", _COUNT_BUCKETS)
        self._max_tokens = histogram("request_params_max_tokens", "The max_tokens of a request.", tokens)
        self._step = histogram("iteration_tokens_total", "Prompt and output tokens of a step.", _STEP_BUCKETS)
        self._generated = Counter(f"{PREFIX}:generation_tokens", "Tokens generated.", LABELS, registry=registry).labels(
            model_name, ENGINE
        )
        finished = Counter(
            f"{PREFIX}:request_success",
            "Answers that were completed, by the reason of their end.",
            [*LABELS, "finished_reason"],
            registry=registry,
        )
        self._finished = {reason: finished.labels(model_name, ENGINE, reason.value) for reason in FinishReason}
        self._http = Counter(
            "http_requests",
            "HTTP requests, by route, method and class of status.",
            ["method", "status", "handler"],
            registry=self._registry,
        )
        self._http_duration = Histogram(
            "http_request_duration_seconds",
            "From an HTTP request to the end of its answer, by route and method.",
            ["method", "handler"],
            registry=self._registry,
            buckets=_HTTP_BUCKETS,
        )
        ProcessCollector(registry=self._registry)

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
        for count in processed.step_tokens:
            self._step.observe(count)
        for ended in processed.ended:
            self.gave_up(ended)

    def gave_up(self, ended: Ended) -> None:
        """Count a request that is over, complete or not. A time that it did not come to is not counted."""
        for reason, num_tokens in ended.ends:
            self._finished[reason].inc()
            self._output.observe(num_tokens)
        longest = max(num_tokens for _, num_tokens in ended.ends)
        self._longest.observe(longest)
        self._n.observe(len(ended.ends))
        self._prompt.observe(ended.num_prompt_tokens)
        if ended.max_tokens is not None:
            self._max_tokens.observe(ended.max_tokens)
        self._observe_times(ended, longest)

    def _observe_times(self, ended: Ended, num_tokens: int) -> None:
        times = ended.metrics
        if times.finished_time is not None:
            self._latency.observe(times.finished_time - times.arrival_time)
        if times.started_time is not None:
            self._queue.observe(max(0.0, times.started_time - times.arrival_time))
            self._computed.observe(ended.num_prompt_tokens - ended.num_cached_tokens)
        if times.first_token_time is None or times.last_token_time is None:
            return
        decode = times.last_token_time - times.first_token_time
        self._decode.observe(decode)
        if times.started_time is not None:
            self._prefill.observe(times.first_token_time - times.started_time)
            self._inference.observe(times.last_token_time - times.started_time)
        if num_tokens > 1:
            self._per_token.observe(decode / (num_tokens - 1))

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count an HTTP request that is over. path: of the route, with the names of its parameters. seconds: its
        duration."""
        if path not in _PROBES:
            self._http.labels(method, f"{status // 100}xx", path).inc()
            self._http_duration.labels(method, path).observe(seconds)

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
        waiting = now.num_waiting + now.num_preparing  # as in vLLM: the sum over all reasons
        gauges = {
            "num_requests_running": ("Requests that have a slot.", now.num_running),
            "num_requests_waiting": ("Requests that wait for a slot or are prepared.", waiting),
            "num_requests_preparing": ("Requests that a preprocess job works on.", now.num_preparing),
            "num_requests_reserved": ("Requests with slot and blocks that compute nothing yet.", now.num_reserved),
            "num_requests_sending": ("Requests whose KV is on its way to a decode engine.", now.num_sending),
            "num_requests_receiving": ("Requests whose KV is on its way from a prefill engine.", now.num_receiving),
            "kv_blocks_lent": ("KV blocks that other engines may read.", now.num_blocks_lent),
            "kv_blocks_quarantined": (
                "KV blocks of former requests that a connector may still write to.",
                now.num_blocks_quarantined,
            ),
            "engine_paused": ("1 while the engine is paused, else 0.", int(now.paused)),
            "kv_cache_usage_perc": ("Share of the KV-cache blocks that requests refer to, 0 to 1.", now.kv_cache_usage),
        }
        counters = {
            "num_preemptions": ("Requests that gave up their blocks and were computed again.", now.num_preemptions),
            "prompt_tokens": ("Prompt tokens, computed or found in the prefix cache.", now.num_prompt_tokens),
            "prefix_cache_queries": ("Tokens looked up in the prefix cache.", now.num_prefix_query_tokens),
            "prefix_cache_hits": ("Tokens found in the prefix cache.", now.num_prefix_hit_tokens),
            "prompt_tokens_cached": ("Prompt tokens found in the prefix cache.", now.num_prefix_hit_tokens),
            "lost_pulls": ("Prompts whose KV should have come from another engine.", now.num_lost_pulls),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(f"{PREFIX}:{name}", text, labels=LABELS)
            gauge.add_metric([self._model_name, ENGINE], value)
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(f"{PREFIX}:{name}", text, labels=LABELS)
            counter.add_metric([self._model_name, ENGINE], value)
            yield counter
        by_reason = GaugeMetricFamily(
            f"{PREFIX}:num_requests_waiting_by_reason", "Requests that wait, by the reason.", labels=[*LABELS, "reason"]
        )
        for reason, value in (("capacity", now.num_waiting), ("deferred", now.num_preparing)):
            by_reason.add_metric([self._model_name, ENGINE, reason], value)
        yield by_reason
        sources = {
            "local_compute": now.num_prompt_tokens - now.num_prefix_hit_tokens - now.num_received_tokens,
            "local_cache_hit": now.num_prefix_hit_tokens,
            "external_kv_transfer": now.num_received_tokens,
        }
        yield self._by_source("prompt_tokens_by_source", "Prompt tokens, by their source.", sources)
        yield self._by_source(
            "prompt_tokens_cached_by_source",
            "Prompt tokens found in a cache, by the memory that has it.",
            {"device": now.num_prefix_hit_tokens},
        )

    def _by_source(self, name: str, text: str, sources: dict[str, int]) -> Metric:
        family = CounterMetricFamily(f"{PREFIX}:{name}", text, labels=[*LABELS, "source"])
        for source, value in sources.items():
            family.add_metric([self._model_name, ENGINE, source], value)
        return family


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
