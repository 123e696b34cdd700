"""Families of metrics whose numbers are read from each engine, for each page."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headway.client.engine_client import EngineClient
from headway.client.engines import Engines
from headway.server.metrics.metric_names import LABELS, PREFIX

Family = type[GaugeMetricFamily] | type[CounterMetricFamily]
Numbers = Mapping[tuple[str, ...], float]
"""By the values of further labels."""


class Sampled(NamedTuple):
    """The numbers of one engine in a family. labels: the names of further labels."""

    family: Family
    name: str
    text: str
    numbers: Numbers
    labels: tuple[str, ...] = ()


def gauge(name: str, text: str, value: float | Numbers, labels: tuple[str, ...] = ()) -> Sampled:
    """Of a gauge. value: the number, or the numbers by the values of `labels`."""
    return Sampled(GaugeMetricFamily, name, text, value if isinstance(value, Mapping) else {(): value}, labels)


def counter(name: str, text: str, value: float | Numbers, labels: tuple[str, ...] = ()) -> Sampled:
    """Of a counter; see `gauge`."""
    return Sampled(CounterMetricFamily, name, text, value if isinstance(value, Mapping) else {(): value}, labels)


class PerEngine(Collector):
    """A sample for each engine that is here, with its name in the label `engine`."""

    def __init__(self, model_name: str, engines: Engines) -> None:
        self._model_name = model_name
        self._engines = engines

    @abstractmethod
    def of(self, engine: EngineClient) -> Iterable[Sampled]:
        """The numbers of one engine now."""

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for engine, client in self._engines.engines.items():
            for family, name, text, numbers, labels in self.of(client):
                if name not in families:
                    families[name] = family(f"{PREFIX}:{name}", text, labels=[*LABELS, *labels])
                for values, number in numbers.items():
                    families[name].add_metric([self._model_name, engine, *values], number)
        yield from families.values()
