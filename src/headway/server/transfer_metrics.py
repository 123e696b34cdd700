"""What the metrics tell of KV that moves between engines, and of the prefill engines that this server asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headway.client.engine_client import EngineClient
from headway.server.metrics import ENGINE, LABELS
from headway.server.prefill_engines import PrefillEngines
from headway.wire.to_client import TransferCounts

Numbers = Mapping[tuple[str, ...], float]


class TransferMetrics(Collector):
    """Leases of blocks, always; connections, bytes and failures, if the engine moves KV; requests to prefill engines,
    if the server asks any."""

    def __init__(self, model_name: str, client: EngineClient, prefill: PrefillEngines | None) -> None:
        self._model_name = model_name
        self._client = client
        self._prefill = prefill

    def collect(self) -> Iterator[Metric]:
        yield from self._leases()
        if self._client.transfers is not None:
            yield from self._transfers(self._client.transfers)
        if self._prefill is not None:
            yield self._counter(
                "prefill_requests",
                "Requests to prefill engines, by what came of them.",
                ("outcome",),
                {(outcome.value,): count for outcome, count in self._prefill.outcomes.items()},
            )

    def _leases(self) -> Iterator[Metric]:
        now = self._client.snapshot
        yield self._gauge(
            "kv_leases",
            "Prompts whose KV blocks other engines may read, by whether one has asked for it.",
            ("state",),
            {("unclaimed",): now.num_leases_unclaimed, ("claimed",): now.num_leases_claimed},
        )
        yield self._counter(
            "kv_leases_ended",
            "Prompts whose KV blocks other engines could read, by what has ended that.",
            ("reason",),
            {
                ("consumed",): now.num_leases_consumed,
                ("released",): now.num_leases_released,
                ("expired",): now.num_leases_expired,
                ("revoked",): now.num_leases_revoked,
            },
        )

    def _transfers(self, counts: TransferCounts) -> Iterator[Metric]:
        read, sent = _by_one(counts.bytes_read, "received"), _by_one(counts.bytes_sent, "sent")
        yield self._counter(
            "kv_transfer_bytes",
            "Bytes of KV, by transport. What others read of this engine's shared memory is not seen here.",
            ("transport", "direction"),
            read | sent,
        )
        yield self._counter(
            "kv_transfer_seconds",
            "Seconds in which KV was being received, by transport, added over prefill engines.",
            ("transport",),
            _by_one(counts.seconds),
        )
        yield self._counter(
            "kv_transfer_failures",
            "Prompts whose KV has not come from another engine, by the reason.",
            ("reason",),
            _by_one(counts.failures),
        )
        yield self._gauge("kv_peers", "Engines that KV may be read from, by state.", ("state",), _by_one(counts.peers))
        yield self._gauge("kv_borrowers", "Engines that may read KV here now.", (), {(): counts.borrowers})
        yield self._counter(
            "kv_peer_errors",
            "Connections of other engines that were ended: refused, or after a message that cannot be taken.",
            ("kind",),
            {("refused",): counts.num_refused, ("bad_message",): counts.num_bad_messages},
        )

    def _gauge(self, name: str, text: str, labels: tuple[str, ...], numbers: Numbers) -> Metric:
        return self._filled(GaugeMetricFamily(f"headway:{name}", text, labels=[*LABELS, *labels]), numbers)

    def _counter(self, name: str, text: str, labels: tuple[str, ...], numbers: Numbers) -> Metric:
        return self._filled(CounterMetricFamily(f"headway:{name}", text, labels=[*LABELS, *labels]), numbers)

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily, numbers: Numbers) -> Metric:
        for values, number in numbers.items():
            family.add_metric([self._model_name, ENGINE, *values], number)
        return family


def _by_one(numbers: Mapping[str, float], *more: str) -> dict[tuple[str, ...], float]:
    """The numbers of one label, with further labels that are the same for all."""
    return {(key, *more): number for key, number in numbers.items()}
