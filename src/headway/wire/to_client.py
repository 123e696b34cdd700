"""The messages from the engine process to an API process, and the core's records that they bring."""

from __future__ import annotations

import msgspec

from headway.config import SchedulerConfig
from headway.scheduler.audit import AuditReport, Owner
from headway.scheduler.effects import Effects, RequestEnd, TokenOutputs
from headway.scheduler.snapshot import Snapshot

__all__ = [
    "Accepted",
    "AuditReport",
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
]


class Ready(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine is loaded and takes requests. config: the limits that it decided on."""

    config: SchedulerConfig


class LoadFailed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine could not be loaded; the process is about to end."""

    message: str


class Accepted(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A group of several was accepted whole. (A single request is known to be accepted by its first effect.)"""

    uid: int  # of its first member


class Refused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A group was refused, and what was accepted of it taken back. kind: see `refusals.py`."""

    uid: int  # of the group's first member
    kind: str
    message: str


class Step(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The effects of one turn of the writer that concern one client. Fields as in `Effects`."""

    started: list[tuple[int, int]]
    tokens: list[TokenOutputs]
    ended: list[RequestEnd]

    @classmethod
    def of(cls, effects: Effects) -> Step:
        """The message that carries `effects`."""
        return cls(effects.started, effects.tokens, effects.ended)

    @property
    def effects(self) -> Effects:
        """What the message carries. After a crossing the arrays are read-only views of its bytes."""
        return Effects(started=self.started, tokens=self.tokens, ended=self.ended)


class Status(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine's pulse, sent several times a second, busy or not."""

    snapshot: Snapshot
    stalled: bool
    failure: str | None


class Returned(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What a call returned; see the call."""

    number: int
    value: AuditReport | int | bool | None = None


class Raised(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What a call raised. kind: see `refusals.py`."""

    number: int
    kind: str
    message: str


ToClient = Ready | LoadFailed | Accepted | Refused | Step | Status | Returned | Raised
