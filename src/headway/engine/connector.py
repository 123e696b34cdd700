"""What moves KV between this engine and others, as the writer sees it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from headway.config import ANY_PEER, KV_SECRET_VARIABLE, EngineConfig, host_and_port
from headway.managers import Manager
from headway.request import Request
from headway.scheduler.batch import LongArray
from headway.scheduler.effects import Lending, Pull
from headway.transfer.counts import TransferCounts
from headway.transfer.memory import KVMemory

logger = logging.getLogger(__name__)


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
        """D: read the KV of a prompt into these blocks. `manager.receive_done` must follow when no write to the blocks
        can come any more: when all is there, or has failed, or was stopped. The first word counts; a stop that comes at
        the same time may bring a second."""

    def pull_from(self, uid: int, params: Mapping[str, Any] | None) -> None:
        """D: the source of a pull whose request came without parameters. None: there is no source; `receive_done` must
        follow. Other uids are ignored. On the thread that adds requests."""

    def stop_pull(self, uid: int) -> None:
        """D: the KV of this request is not wanted any more. `manager.receive_done` follows all the same. The uid may be
        that of a reservation (`manager.reserve_decode`), whose blocks the reserving side has told its sender."""

    def lending(self, lending: Lending) -> None:
        """P: another engine may read this much of a prompt from now on."""

    def handover(self, uid: int) -> dict[str, Any] | None:
        """P: what D must be told to ask for the KV of a request that lends, from `expect` on: the `kv_transfer_params`
        of the answer. None: nothing is lent. On any thread."""

    def answered(self, uids: LongArray) -> None:
        """These requests, int64, have got a token. If one of them was wanted and never pulled, P need not keep it any
        longer."""

    def ended(self, uids: Iterable[int]) -> None:
        """These requests have ended. Leases that have begun go on."""

    def revoked(self, uid: int) -> None:
        """P: this lease has ended before it was consumed. What is read of it from now on is void."""

    def begin_anew(self) -> None:
        """P: what was shown or lent so far is void, whatever D holds of it."""

    def counts(self) -> TransferCounts:
        """What was moved since the start. Any thread."""

    def peer_of(self, uid: int) -> str | None:
        """HOST:PORT of the engine that the KV of this request comes from or goes to, where one is known. Any thread."""


def connector_of(config: EngineConfig, memory: KVMemory, manager: Manager) -> Connector:
    """The connector that the configuration asks for. Raises ValueError, with one line, if it cannot begin."""
    from headway.transfer.connector import KVConnector  # not needed by engines that move no KV

    secret = config.kv_secret or os.environ.get(KV_SECRET_VARIABLE)
    listens = ("127.0.0.1", 0) if config.kv_listen is None else host_and_port("kv_listen", config.kv_listen)
    try:
        connector = KVConnector(
            manager,
            memory,
            num_token_ids=manager.door.num_token_ids,
            lease_seconds=manager.config.lend_timeout,
            peers=config.kv_addresses,
            listens=listens,
            secret=None if secret is None else secret.encode(),
            transport=config.kv_transport,
            any_peer=config.kv_peers == ANY_PEER,
        )
    except OSError as error:
        raise ValueError(f"no KV can be lent at {listens[0]}:{listens[1]}: {error.strerror or error}") from None
    logger.info("KV is lent at %s:%d; it may be pulled from %s", *connector.address, config.kv_peers or "no engine")
    return connector
