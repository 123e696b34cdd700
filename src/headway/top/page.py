"""What /metrics said at one time."""

from __future__ import annotations

from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_PREFIX = "headway:"


class Page:
    """The samples of one page of metrics, by name. A family of Headway's is named without its prefix.

    taken: seconds, on any clock that goes on evenly.

    Raises ValueError for a text that is no page of metrics, or that is of another kind of server.
    """

    def __init__(self, text: str, taken: float) -> None:
        self.taken = taken
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples[sample.name.removeprefix(_PREFIX)].append(sample)
        for needed in ("num_requests_running", "num_slots"):
            if needed not in self._samples:
                raise ValueError(f"its metrics have no {_PREFIX}{needed}")

    @property
    def model(self) -> str:
        """The name of the model that is served."""
        return self._samples["num_requests_running"][0].labels["model_name"]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name and these labels; 0 if there is none."""
        return sum(sample.value for sample in self._samples[name] if labels.items() <= sample.labels.items())

    def series(self, name: str, **labels: str) -> dict[frozenset[tuple[str, str]], float]:
        """The samples with this name and these labels, each by all its labels."""
        return {
            frozenset(sample.labels.items()): sample.value
            for sample in self._samples[name]
            if labels.items() <= sample.labels.items()
        }

    @property
    def engines(self) -> list[str]:
        """The names of the engines, in order."""
        return [sample.labels.get("engine", "") for sample in self._samples["num_requests_running"]]

    def mean(self, name: str) -> float:
        """The mean over the samples with this name; 0 if there is none."""
        samples = self._samples[name]
        return sum(sample.value for sample in samples) / len(samples) if samples else 0.0

    def labels(self, name: str, label: str) -> list[str]:
        """The values of a label, of all samples with this name that have it."""
        return [sample.labels[label] for sample in self._samples[name] if label in sample.labels]

    def by(self, name: str, label: str) -> dict[str, float]:
        """The samples with this name, summed for each value of a label."""
        sums: dict[str, float] = defaultdict(float)
        for sample in self._samples[name]:
            sums[sample.labels[label]] += sample.value
        return dict(sums)

    def buckets(self, name: str) -> list[tuple[float, float]]:
        """(upper bound, observations up to it) of a histogram, ascending; the last bound is infinite."""
        return sorted((float(bound), count) for bound, count in self.by(f"{name}_bucket", "le").items())
