"""What the metrics tell of requests: counted in this process, when the messages of their engine come."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from headway.client.token_processor import Ended, Processed
from headway.request import FinishReason
from headway.server.metrics.metric_names import LABELS, PREFIX

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


def _token_buckets(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `limit`."""
    buckets: list[float] = []
    scale = 1
    while scale <= limit:
        buckets += [float(scale * digit) for digit in (1, 2, 5) if scale * digit <= limit]
        scale *= 10
    return tuple(buckets)


class RequestMetrics:
    """The families, for all engines."""

    def __init__(self, registry: CollectorRegistry, max_model_len: int) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{PREFIX}:{name}", text, LABELS, registry=registry, buckets=buckets)

        tokens = _token_buckets(max_model_len)

        self.first_token = histogram(
            "time_to_first_token_seconds", "From the arrival of a request to its first token.", _FIRST_TOKEN_BUCKETS
        )
        self.inter_token = histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", _PER_TOKEN_BUCKETS
        )
        self.per_token = histogram(
            "request_time_per_output_token_seconds",
            "Mean time per output token after the first, of each finished request.",
            _PER_TOKEN_BUCKETS,
        )
        self.latency = histogram(
            "e2e_request_latency_seconds", "From the arrival of a request to its last token.", _REQUEST_BUCKETS
        )
        self.queue = histogram("request_queue_time_seconds", "From arrival to the first slot.", _REQUEST_BUCKETS)
        self.prefill = histogram("request_prefill_time_seconds", "From slot to first token.", _REQUEST_BUCKETS)
        self.decode = histogram("request_decode_time_seconds", "From first to last token.", _REQUEST_BUCKETS)
        self.inference = histogram("request_inference_time_seconds", "From slot to last token.", _REQUEST_BUCKETS)
        self.prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", tokens)
        self.computed = histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens that were not in the prefix cache.", tokens
        )
        self.output = histogram("request_generation_tokens", "Output tokens of an answer.", tokens)
        self.longest = histogram(
            "request_max_num_generation_tokens", "Output tokens of the longest answer of a request.", tokens
        )
        self.n = histogram("request_params_n", "The n of a request.", _COUNT_BUCKETS)
        self.max_tokens = histogram("request_params_max_tokens", "The max_tokens of a request.", tokens)
        self.step = histogram("iteration_tokens_total", "Prompt and output tokens of a step.", _STEP_BUCKETS)
        self.generated = Counter(f"{PREFIX}:generation_tokens", "Tokens generated.", LABELS, registry=registry)
        self.finished = Counter(
            f"{PREFIX}:request_success",
            "Answers that were completed, by the reason of their end.",
            [*LABELS, "finished_reason"],
            registry=registry,
        )


class EngineObserver:
    """An `Observer` of one engine. One event loop writes; any thread may read the page."""

    def __init__(self, families: RequestMetrics, model_name: str, engine: str) -> None:
        labels = model_name, engine
        self._first_token = families.first_token.labels(*labels)
        self._inter_token = families.inter_token.labels(*labels)
        self._per_token = families.per_token.labels(*labels)
        self._latency = families.latency.labels(*labels)
        self._queue = families.queue.labels(*labels)
        self._prefill = families.prefill.labels(*labels)
        self._decode = families.decode.labels(*labels)
        self._inference = families.inference.labels(*labels)
        self._prompt = families.prompt.labels(*labels)
        self._computed = families.computed.labels(*labels)
        self._output = families.output.labels(*labels)
        self._longest = families.longest.labels(*labels)
        self._n = families.n.labels(*labels)
        self._max_tokens = families.max_tokens.labels(*labels)
        self._step = families.step.labels(*labels)
        self._generated = families.generated.labels(*labels)
        self._finished = {reason: families.finished.labels(*labels, reason.value) for reason in FinishReason}

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
