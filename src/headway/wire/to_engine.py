"""The wire messages from API processes to the engine process."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec

from headway.config import PauseMode
from headway.request import NewRequest


class AddGroup(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Requests of one HTTP request, each with a uid of the same API process. The engine takes them in order, up to the
    first that it refuses: then it answers `Refused`.

    confirm: if it takes all of them, it answers `Accepted`.
    """

    requests: list[NewRequest]
    confirm: bool = False


class Abort(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The answers of these requests are no longer wanted."""

    uids: list[int]


class Finish(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The answers of these requests are complete: a stop string was found."""

    uids: list[int]


class PullFrom(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The source of the KV of a prompt that was in `Step.sourceless`. params: `kv_transfer_params` of P; None: there is
    no source, and the prompt is computed here. Other uids are ignored."""

    uid: int
    params: dict[str, Any] | None


class PauseEngine(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """See `Manager.pause`. Returns None. timeout: seconds."""

    mode: PauseMode
    reset_prefix_cache: bool
    timeout: float


class ResumeEngine(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """See `Manager.resume`. Returns None."""


class IsPaused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Whether new requests are refused because of a pause. Returns bool."""


class ResetCache(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """See `Manager.reset_prefix_cache`. Returns int. timeout: seconds."""

    timeout: float


class AuditEngine(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """See `Manager.audit`. Returns AuditReport. timeout: seconds."""

    timeout: float


EngineCall = PauseEngine | ResumeEngine | IsPaused | ResetCache | AuditEngine


class Call(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A call that concerns the whole engine. One `Returned` or `Raised` with the same number follows.

    number: unique; its upper bits name the calling process, as in a uid.
    until: seconds, `time.monotonic` of this host. A call that the engine finds later is not carried out: its caller has
        been told that it failed.
    """

    number: int
    call: EngineCall
    until: float = inf


class Attach(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A further API process. The engine says `Ready` to it, and from then on its pulses and what becomes of the
    requests of this client. It must be the first message of the process: messages of other clients are dropped.

    client: the number in the upper bits of its uids and calls, which this engine has never seen before.
    address: where the process listens, as ZeroMQ writes it.
    """

    client: int
    address: str


class Detach(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """An API process is gone, or goes. Its requests are aborted; it gets nothing more, and its number never comes back.
    Any process may say so of any other."""

    client: int


class TellCache(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """This client wants `CacheNews`: first of everything, then of what changes. Only where `Ready.tells_cache`."""

    client: int


class Shutdown(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Stop the engine process; running requests may go on for `grace` seconds."""

    grace: float = 0.0


ToEngine = AddGroup | Abort | Finish | PullFrom | Call | Attach | Detach | TellCache | Shutdown
