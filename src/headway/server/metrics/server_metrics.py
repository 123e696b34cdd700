"""Metrics for Prometheus, under Headway's names and under the names that dashboards and autoscalers for vLLM use.

Gauges and counters of engines are read from each engine's last snapshot, for each page; the label `engine` is the name
of the engine. The other metrics are counted in this process, when messages of the engines come. Every family appears
twice, as `headway:...` and as `vllm:...`, with the same numbers. Only the families of HTTP and of the server's process
have no prefix, as in vLLM.

Where several processes serve one port, the environment names a folder (PROMETHEUS_MULTIPROC_DIR) in which each process
keeps what it counts. Then every page has the sums over all processes, also over processes that have ended; the gauges
of these are gone once `prometheus_client.multiprocess.mark_process_dead` was called.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from headway.client.engines import Engines
from headway.server.metrics.engine_health import WIRE_ERRORS, EngineHealth
from headway.server.metrics.engine_numbers import EngineNumbers
from headway.server.metrics.kv_event_metrics import KVEventMetrics
from headway.server.metrics.metric_names import ALIAS, LABELS, PREFIX
from headway.server.metrics.request_metrics import EngineObserver, RequestMetrics
from headway.server.metrics.transfer_metrics import TransferMetrics

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # the library reads it when it is imported
SYNC_SECONDS = 1.0  # between two times that this process tells the others what is counted elsewhere in it
_HTTP_BUCKETS = (0.1, 0.5, 1.0)
_PROBES = frozenset({"/metrics", "/health", "/ping", "/version"})  # no clients: they would hide the share of errors

Read = Callable[[], Mapping[tuple[str, ...], float]]
"""Reads the numbers of a family: by engine, and the values of further labels."""


class ServerMetrics:
    """The page of a server, and what this process counts for it. One event loop writes; any thread may read the page.

    The engines are observed from now on. api_replica: a label of everything on the page, for servers whose pages are
    read at one address, and which share no folder.
    """

    def __init__(self, model_name: str, engines: Engines, api_replica: str | None = None) -> None:
        self._model_name = model_name
        self._counted = CollectorRegistry()  # in this process
        self._tracked: list[tuple[Counter | Gauge, Read, dict[tuple[str, ...], float]]] = []
        requests = RequestMetrics(self._counted, engines.config.max_model_len)
        self._http = Counter(
            "http_requests",
            "HTTP requests, by route, method and class of status.",
            ["method", "status", "handler"],
            registry=self._counted,
        )
        self._http_duration = Histogram(
            "http_request_duration_seconds",
            "From an HTTP request to the end of its answer, by route and method.",
            ["method", "handler"],
            registry=self._counted,
            buckets=_HTTP_BUCKETS,
        )
        self.track(
            *WIRE_ERRORS,
            lambda: {
                (name, engine.wire_errors.side): engine.wire_errors.count for name, engine in engines.engines.items()
            },
        )
        self.track(
            "requests_retried",
            "Requests that went on to another engine, as the engine died or was full before anything was answered.",
            (),
            lambda: {(name,): number for name, number in engines.retried.items()},
        )
        read = [kind(model_name, engines) for kind in (EngineNumbers, EngineHealth, TransferMetrics, KVEventMetrics)]
        folder = os.environ.get(FOLDER_VARIABLE)
        self._page = CollectorRegistry()
        if folder is None:
            self._page.register(_Page([self._counted, *read, ProcessCollector(registry=None)], api_replica))
        else:  # numbers of one of several processes would mislead
            self._page.register(_Page([MultiProcessCollector(None, folder), *read], api_replica))
        engines.observe(lambda engine: EngineObserver(requests, model_name, engine))

    def track(self, name: str, text: str, labels: Iterable[str], read: Read) -> None:
        """Put a family on the page that something else in this process counts; it is read now and then."""
        family = Counter(f"{PREFIX}:{name}", text, [*LABELS, *labels], registry=self._counted)
        self._tracked.append((family, read, {}))

    def track_longest(self, name: str, text: str, read: Read) -> None:
        """Likewise a gauge, of which the page has the largest value over all processes."""
        family = Gauge(f"{PREFIX}:{name}", text, LABELS, registry=self._counted, multiprocess_mode="livemax")
        self._tracked.append((family, read, {}))

    async def watch(self) -> None:
        """Tell the other processes what is counted here, until it is cancelled."""
        while True:
            self.sync()
            await asyncio.sleep(SYNC_SECONDS)

    def sync(self) -> None:
        """Bring the tracked families up to date."""
        for family, read, seen in self._tracked:
            for values, number in read().items():
                child = family.labels(self._model_name, *values)
                if isinstance(child, Gauge):
                    child.set(number)
                else:
                    child.inc(number - seen.get(values, 0))
                    seen[values] = number

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count an HTTP request that is over. path: of the route, with the names of its parameters. seconds: its
        duration."""
        if path not in _PROBES:
            self._http.labels(method, f"{status // 100}xx", path).inc()
            self._http_duration.labels(method, path).observe(seconds)

    def page(self) -> bytes:
        """All metrics, in Prometheus's text format."""
        self.sync()
        return generate_latest(self._page)


class _Page(Collector):
    """The families of several sources, each once, and a copy under the other prefix of each that has Headway's."""

    def __init__(self, sources: Iterable[Collector | CollectorRegistry], api_replica: str | None) -> None:
        self._sources = list(sources)
        self._more_labels = {} if api_replica is None else {"api_replica": api_replica}

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for source in self._sources:
            for family in source.collect():
                samples = [
                    sample._replace(labels={**sample.labels, **self._more_labels})
                    for sample in family.samples
                    if not sample.name.endswith("_created")
                ]
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples += samples
        for family in families.values():
            yield family
            if family.name.startswith(f"{PREFIX}:"):
                alias = Metric(_alias(family.name), family.documentation, family.type)
                alias.samples = [sample._replace(name=_alias(sample.name)) for sample in family.samples]
                yield alias


def _alias(name: str) -> str:
    return ALIAS + name.removeprefix(PREFIX)
