"""What the metrics tell of KV that moves between engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from headway.client.engine_client import EngineClient
from headway.server.metrics.per_engine import PerEngine, Sampled, counter, gauge
from headway.wire.to_client import Snapshot, TransferCounts


class TransferMetrics(PerEngine):
    """Leases of blocks, always; connections, bytes and failures, of engines that move KV."""

    def of(self, engine: EngineClient) -> Iterator[Sampled]:
        yield from _leases(engine.snapshot)
        if engine.transfers is not None:
            yield from _transfers(engine.transfers)


def _leases(now: Snapshot) -> Iterator[Sampled]:
    yield gauge(
        "kv_leases",
        "Prompts whose KV blocks other engines may read, by whether one has asked for it.",
        {("unclaimed",): now.num_leases_unclaimed, ("claimed",): now.num_leases_claimed},
        ("state",),
    )
    yield counter(
        "kv_leases_ended",
        "Prompts whose KV blocks other engines could read, by what has ended that.",
        {
            ("consumed",): now.num_leases_consumed,
            ("released",): now.num_leases_released,
            ("expired",): now.num_leases_expired,
            ("revoked",): now.num_leases_revoked,
        },
        ("reason",),
    )


def _transfers(counts: TransferCounts) -> Iterator[Sampled]:
    read, sent = _by_one(counts.bytes_read, "received"), _by_one(counts.bytes_sent, "sent")
    yield counter(
        "kv_transfer_bytes",
        "Bytes of KV, by transport. What others read of this engine's shared memory is not seen here.",
        read | sent,
        ("transport", "direction"),
    )
    yield counter(
        "kv_transfer_seconds",
        "Seconds in which KV was being received, by transport, added over prefill engines.",
        _by_one(counts.seconds),
        ("transport",),
    )
    yield counter(
        "kv_transfer_failures",
        "Prompts whose KV has not come from another engine, by the reason.",
        _by_one(counts.failures),
        ("reason",),
    )
    yield gauge("kv_peers", "Engines that KV may be read from, by state.", _by_one(counts.peers), ("state",))
    yield gauge("kv_borrowers", "Engines that may read KV here now.", counts.borrowers)
    yield counter(
        "kv_peer_errors",
        "Connections of other engines that were ended: refused, or after a message that cannot be taken.",
        {("refused",): counts.num_refused, ("bad_message",): counts.num_bad_messages},
        ("kind",),
    )


def _by_one(numbers: Mapping[str, float], *more: str) -> dict[tuple[str, ...], float]:
    """The numbers of one label, with further labels that are the same for all."""
    return {(key, *more): number for key, number in numbers.items()}
