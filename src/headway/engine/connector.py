"""What moves KV between this engine and others, as the writer sees it."""

from __future__ import annotations

from typing import Any, Protocol

from headway.scheduler.effects import Lending, Pull


class Connector(Protocol):
    """Reads KV of other engines into blocks here, and lets other engines read blocks here.

    The writer calls these methods on its thread, in the order of the effects; none of them may block. They say what has
    come of them to the manager, on any thread: `receive_done`, `renew_leases`, `end_leases`, `consume_lease`.
    """

    def pull(self, pull: Pull) -> None:
        """D: read the KV of a prompt into these blocks. `manager.receive_done` must follow, exactly once, when no write
        to the blocks can come any more: when all is there, or has failed, or was stopped."""

    def stop_pull(self, uid: int) -> None:
        """D: the KV of this request is not wanted any more. `manager.receive_done` follows all the same. The uid may be
        that of a reservation (`manager.reserve_decode`), whose blocks the reserving side has told its sender."""

    def lending(self, lending: Lending) -> dict[str, Any] | None:
        """P: another engine may read this much of a prompt from now on. Returns what D must be told, once the request
        has its token: the `kv_transfer_params` of its answer."""

    def revoked(self, uid: int) -> None:
        """P: this lease has ended before it was consumed. What is read of it from now on is void."""
