"""The wire messages from the engine process to an API process, and the records of the core in them."""

from __future__ import annotations

from typing import Any

import msgspec

from headway.config import SchedulerConfig
from headway.placement import Placement
from headway.scheduler.audit import AuditReport, Owner
from headway.scheduler.effects import Effects, PromptOutputs, RequestEnd, TokenOutputs
from headway.scheduler.snapshot import Snapshot
from headway.transfer.counts import TransferCounts

__all__ = [
    "Accepted",
    "AuditReport",
    "CacheNews",
    "Lends",
    "LoadFailed",
    "Owner",
    "Raised",
    "Ready",
    "Refused",
    "Returned",
    "Snapshot",
    "Status",
    "Step",
    "ToClient",
    "TransferCounts",
]


class Ready(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine is loaded and takes requests. config: the limits in force, with the number of blocks.

    address: where clients of other machines reach the engine, see `Launch.listen`; None: nowhere.
    tells_cache: `TellCache` is answered. pulse: the numbers now, so that a client that comes late never shows
        less than the clients before it.
    """

    config: SchedulerConfig
    placement: Placement = Placement()
    address: str | None = None
    tells_cache: bool = False
    pulse: Status | None = None


class LoadFailed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine could not be loaded; the process is about to end."""

    message: str


class Accepted(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """All requests of a group that asked for this word were taken."""

    uid: int  # of the group's first request


class Refused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A request was refused. The requests before it in its group were taken, the requests behind it were not looked at.

    count: requests that were taken. kind: see `refusals.py`.
    """

    uid: int  # of the group's first request
    count: int
    kind: str
    message: str


class Lends(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """P has taken a request that lends: from now on D may ask for the KV of its prompt. See `Effects.handovers`."""

    uid: int
    params: dict[str, Any]


class Step(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The effects of one turn of the writer that concern one client. Fields as in `Effects`."""

    started: list[tuple[int, int]]
    tokens: list[TokenOutputs]
    ended: list[RequestEnd]
    handovers: list[tuple[int, dict[str, Any]]] = []
    sourceless: list[int] = []
    prompt_logprobs: list[PromptOutputs] = []

    @classmethod
    def of(cls, effects: Effects) -> Step:
        """The message that carries `effects`."""
        return cls(
            effects.started,
            effects.tokens,
            effects.ended,
            effects.handovers,
            effects.sourceless,
            effects.prompt_logprobs,
        )

    @property
    def effects(self) -> Effects:
        """The effects in the message. In a received message the arrays are read-only views of its bytes."""
        return Effects(
            started=self.started,
            prompt_logprobs=self.prompt_logprobs,
            tokens=self.tokens,
            handovers=self.handovers,
            sourceless=self.sourceless,
            ended=self.ended,
        )


class KVEventCounts(msgspec.Struct, frozen=True, array_like=True):
    """Batches of KV events since the start: that were published, and that were lost before."""

    published: int = 0
    lost: int = 0

    def after(self, before: KVEventCounts) -> KVEventCounts:
        """The counts of both."""
        return KVEventCounts(before.published + self.published, before.lost + self.lost)


class Status(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine's pulse, sent several times a second, also while the engine is idle.

    num_wire_errors: messages to the engine that were dropped since it started; see `wire_errors.py`.
    transfers: None if the engine moves no KV. kv_events: None if it publishes none.
    """

    snapshot: Snapshot
    stalled: bool
    failure: str | None
    num_wire_errors: int = 0
    transfers: TransferCounts | None = None
    kv_events: KVEventCounts | None = None


class CacheNews(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What has changed in the prefix cache, for clients that have sent `TellCache`. See `block_digests.py`.

    number: one more than that of the news before; a gap means that news were lost. anew: nothing but `stored` is held,
    also where numbers are missing. stored, removed: the digests of blocks that can be found from now on, and that
    cannot any more, one after the other.
    """

    number: int
    anew: bool
    stored: bytes
    removed: bytes = b""


class Returned(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The value that a call returned; see the call for its type. number: of the call."""

    number: int
    value: AuditReport | int | bool | None = None


class Raised(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The error that a call raised. number: of the call. kind: see `refusals.py`."""

    number: int
    kind: str
    message: str


ToClient = Ready | LoadFailed | Accepted | Refused | Lends | Step | Status | CacheNews | Returned | Raised
