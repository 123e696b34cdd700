"""The numbers of an engine over its restarts: a new engine process counts from zero, and no counter may go back."""

from __future__ import annotations

import msgspec

from headway.wire.to_client import KVEventCounts, Snapshot, Status, TransferCounts

_FIRST = Snapshot._fields.index("num_requests_added")
COUNTERS = ("step_id", *Snapshot._fields[_FIRST:])  # the other fields of a snapshot are gauges


class Counted(msgspec.Struct, frozen=True):
    """What the processes of an engine have counted that are gone, and how many they were."""

    snapshot: Snapshot = Snapshot()
    num_wire_errors: int = 0
    transfers: TransferCounts | None = None
    kv_events: KVEventCounts | None = None
    num_lives: int = 0


class Totals:
    """Adds what the engine processes before have counted to what the present one counts.

    snapshot: of the present engine process, with the counters of all. num_wire_errors: messages that all have dropped.
    transfers: likewise; None if the engine moves no KV. kv_events: likewise; None if it publishes none.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.num_wire_errors = 0
        self.transfers: TransferCounts | None = None
        self.kv_events: KVEventCounts | None = None
        self._before = Snapshot()
        self._wire_errors_before = 0
        self._transfers_before = TransferCounts()
        self._kv_events_before = KVEventCounts()

    def begin(self, before: Counted) -> None:
        """The present engine process has had others before it."""
        self.snapshot = self._before = before.snapshot
        self.num_wire_errors = self._wire_errors_before = before.num_wire_errors
        if before.transfers is not None:
            self.transfers = self._transfers_before = before.transfers
        if before.kv_events is not None:
            self.kv_events = self._kv_events_before = before.kv_events

    def counted(self, num_lives: int) -> Counted:
        """For `begin`, when the engine process has died."""
        return Counted(self._before, self.num_wire_errors, self.transfers, self.kv_events, num_lives)

    def take(self, status: Status) -> None:
        """The pulse of the present engine process."""
        self.snapshot = _sum(status.snapshot, self._before)
        self.num_wire_errors = self._wire_errors_before + status.num_wire_errors
        if status.transfers is not None:
            self.transfers = status.transfers.after(self._transfers_before)
        if status.kv_events is not None:
            self.kv_events = status.kv_events.after(self._kv_events_before)

    def end(self, *, paused: bool) -> None:
        """The present engine process has died: nothing runs, and what it has counted stays. paused: a gauge that is
        the operator's, not the engine's."""
        self._before = counters_of(self.snapshot)
        self._wire_errors_before = self.num_wire_errors
        self.snapshot = self._before._replace(paused=paused)
        if self.transfers is not None:
            self.transfers = self._transfers_before = self.transfers.ended()
        if self.kv_events is not None:
            self._kv_events_before = self.kv_events


_NUMBERS = tuple(name for name, default in Snapshot._field_defaults.items() if type(default) is int)


def counters_of(snapshot: Snapshot) -> Snapshot:
    """Its counters, with the gauges of an engine that does nothing."""
    return _sum(Snapshot(), snapshot)


def added(one: Snapshot, other: Snapshot) -> Snapshot:
    """The sum of the numbers of two engines; what is no number is that of `one`."""
    return one._replace(**{name: getattr(one, name) + getattr(other, name) for name in _NUMBERS})


def _sum(snapshot: Snapshot, before: Snapshot) -> Snapshot:
    """The gauges of `snapshot`, with the counters of both."""
    return snapshot._replace(**{name: getattr(snapshot, name) + getattr(before, name) for name in COUNTERS})
