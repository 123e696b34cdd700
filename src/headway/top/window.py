"""What a server did between two pages of its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import inf, isinf

from headway.top.page import Page


@dataclass(frozen=True, slots=True)
class Latency:
    """Quantiles of a time in seconds, as exact as the buckets of its histogram. None: nothing was observed."""

    median: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Window:
    """Two pages of one server, the earlier first.

    A counter that is smaller in the later page was started anew in between, with the server or an engine: then its new
    value is what was counted.
    """

    before: Page
    now: Page

    @property
    def seconds(self) -> float:
        return self.now.taken - self.before.taken

    def count(self, name: str, **labels: str) -> float:
        """What a counter has counted in the window."""
        earlier = self.before.series(name, **labels)
        return sum(_since(earlier.get(key, 0.0), value) for key, value in self.now.series(name, **labels).items())

    def rate(self, name: str, **labels: str) -> float:
        """What a counter has counted, per second."""
        return self.count(name, **labels) / self.seconds if self.seconds > 0 else 0.0

    def share(self, part: str, whole: str) -> float | None:
        """What one counter has counted, as a share of another. None: that has counted nothing."""
        total = self.count(whole)
        return self.count(part) / total if total else None

    def counts_by(self, name: str, label: str) -> dict[str, float]:
        """What a counter has counted, for each value of a label; values with nothing are left out."""
        earlier = self.before.by(name, label)
        counted = {key: _since(earlier.get(key, 0.0), value) for key, value in self.now.by(name, label).items()}
        return {key: value for key, value in counted.items() if value}

    def latency(self, name: str) -> Latency:
        """The quantiles of what a histogram has observed in the window."""
        earlier = dict(self.before.buckets(name))
        later = self.now.buckets(name)
        anew = any(count < earlier.get(bound, 0.0) for bound, count in later)
        seen = [(bound, count - (0.0 if anew else earlier.get(bound, 0.0))) for bound, count in later]
        return Latency(quantile(seen, 0.5), quantile(seen, 0.99))


def _since(before: float, now: float) -> float:
    return now if now < before else now - before


def quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """A quantile of a histogram, as Prometheus's `histogram_quantile` works it out: values lie evenly in their bucket.

    buckets: (upper bound, observations up to it), ascending. A quantile in the last bucket, which has no upper bound,
    is its lower bound. None: there are no observations.
    """
    if not buckets or not buckets[-1][1]:
        return None
    wanted = share * buckets[-1][1]
    for (low, below), (high, up_to) in pairwise([(0.0, 0.0), *buckets]):
        if up_to >= wanted and up_to > below:
            return low if isinf(high) else low + (high - low) * (wanted - below) / (up_to - below)
    return inf
