"""What a connector has moved, in numbers: a record of the engine's pulse."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TypeVar

import msgspec

from headway.config import KVTransport

Number = TypeVar("Number", int, float)

WAYS = (KVTransport.SHARED_MEMORY, KVTransport.NIXL, KVTransport.TCP)
SENDING_WAYS = (KVTransport.NIXL, KVTransport.TCP)  # P does not see what is read of its shared memory


class PeerState(StrEnum):
    """Where the connection to a P stands, and if it is down, why."""

    IDLE = "idle"  # nothing was wanted of it yet, or no attempt has ended
    CONNECTED = "connected"
    UNREACHABLE = "unreachable"  # it takes no connection, or the connection was lost
    SILENT = "silent"  # it is connected and says nothing
    REFUSED = "refused"  # one side refused the other: secret, model, layout, version
    BAD_MESSAGE = "bad_message"  # it has sent what does not parse, or what P does not send


class TransferCounts(msgspec.Struct, frozen=True, array_like=True):
    """peers: P engines that may be read from, by `PeerState`; borrowers: D engines that are connected. These are
    gauges, the rest counts since the connector was made.

    bytes_read, seconds: by `KVTransport`; the seconds in which a reader of a peer was reading, added over peers.
    bytes_sent: by `KVTransport`, as far as P sees it.
    failures: pulls that have failed, by `Failure`. num_refused: handshakes that this engine refused.
    num_bad_messages: of peers on either side.
    """

    peers: dict[str, int] = {}
    borrowers: int = 0
    bytes_read: dict[str, int] = {}
    bytes_sent: dict[str, int] = {}
    seconds: dict[str, float] = {}
    failures: dict[str, int] = {}
    num_refused: int = 0
    num_bad_messages: int = 0

    def after(self, before: TransferCounts) -> TransferCounts:
        """The gauges of this connector, and the counts of both."""
        return TransferCounts(
            peers=self.peers,
            borrowers=self.borrowers,
            bytes_read=_sum(self.bytes_read, before.bytes_read),
            bytes_sent=_sum(self.bytes_sent, before.bytes_sent),
            seconds=_sum(self.seconds, before.seconds),
            failures=_sum(self.failures, before.failures),
            num_refused=self.num_refused + before.num_refused,
            num_bad_messages=self.num_bad_messages + before.num_bad_messages,
        )

    def ended(self) -> TransferCounts:
        """The counts of a connector that is no more: it is connected to nothing."""
        return msgspec.structs.replace(self, peers=dict.fromkeys(self.peers, 0), borrowers=0)


def by_state(states: list[PeerState], num_idle: int) -> dict[str, int]:
    """Peers by state, those states included that none is in. num_idle: further peers, which are idle."""
    found = Counter(states)
    found[PeerState.IDLE] += num_idle
    return {state.value: found[state] for state in PeerState}


def _sum(now: dict[str, Number], before: dict[str, Number]) -> dict[str, Number]:
    return {key: now.get(key, 0) + before.get(key, 0) for key in before | now}
