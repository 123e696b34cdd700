"""What moves KV between this engine and others, as the writer sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from headway.request import Request
from headway.scheduler.effects import Lending, Pull


class Connector(Protocol):
    """Reads KV of other engines into blocks here, and lets other engines read blocks here.

    The writer calls these methods on its thread, in the order of the effects; none of them may block. They say what has
    come of them to the manager, on any thread: `receive_done`, `renew_leases`, `end_leases`, `consume_lease`. Before a
    request is added, `expect` or `want` is called, on the thread that adds it.
    """

    def expect(self, request: Request) -> None:
        """P: a request that lends is about to be added. If it is refused, `ended` follows."""

    def want(self, uid: int, params: Mapping[str, Any]) -> None:
        """D: a request that pulls is about to be added: P is to keep what it lends, however long the queue is here. If
        it is refused, `ended` follows. Raises ValueError, saying why, if nothing can be pulled."""

    def close(self) -> None:
        """Stop everything, and wait for that. The engine has stopped."""

    def pull(self, pull: Pull) -> None:
        """D: read the KV of a prompt into these blocks. `manager.receive_done` must follow, exactly once, when no write
        to the blocks can come any more: when all is there, or has failed, or was stopped."""

    def stop_pull(self, uid: int) -> None:
        """D: the KV of this request is not wanted any more. `manager.receive_done` follows all the same. The uid may be
        that of a reservation (`manager.reserve_decode`), whose blocks the reserving side has told its sender."""

    def lending(self, lending: Lending) -> None:
        """P: another engine may read this much of a prompt from now on."""

    def handover(self, uid: int) -> dict[str, Any] | None:
        """P: what D must be told of a lease that has begun: the `kv_transfer_params` of the answer. None: nothing is
        lent."""

    def ended(self, uids: Iterable[int]) -> None:
        """These requests have ended. Leases that have begun go on."""

    def revoked(self, uid: int) -> None:
        """P: this lease has ended before it was consumed. What is read of it from now on is void."""
