"""Both sides of an engine: what it lends, and what it pulls. It is the connector of the writer."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from headway.config import KVTransport
from headway.errors import EngineDeadError
from headway.request import Request
from headway.scheduler.batch import LongArray
from headway.scheduler.effects import Lending, Pull
from headway.transfer import handshake, nixl
from headway.transfer.counts import WAYS, TransferCounts, by_state
from headway.transfer.handover import Handover
from headway.transfer.lender import LeaseManager, Lender
from headway.transfer.memory import KVMemory
from headway.transfer.peer import Peer, PeerSetting
from headway.transfer.receiver import Failure, Receiver
from headway.transfer.reference import Seal
from headway.transfer.server import LenderServer

logger = logging.getLogger(__name__)

Address = tuple[str, int]


class TransferManager(LeaseManager, Protocol):
    """The manager of an engine, as the connector knows it. All raise EngineDeadError once the engine has stopped."""

    def receive_done(self, uid: int, token: int | None = None, error: str | None = None) -> None: ...


class KVConnector:
    """Moves KV between this engine and its peers.

    Threads: `pull`, `stop_pull`, `lending`, `revoked`, `ended` and `begin_anew` on the writer's thread; none of them
    waits. `expect`, `want` and `pull_from` on the thread that adds requests. The rest on any thread.

    manager: gets every outcome. num_token_ids: token ids go from 0 to one less.
    peers: the addresses that may be connected to, by what a request calls them; everything else is refused.
    any_peer: `pull_from` may name every address; the secret tells who is a peer. Requests, whose parameters come from
        clients, may not.
    address: where peers find this engine, as D's `peers` call it; None: where it listens.
    listens: (host, port); port 0: any. lease_seconds: `lend_timeout` of the core.
    transport: see `LenderServer` and `PeerSetting`.
    Raises OSError if it cannot listen, ValueError for a secret that is too short, and where NIXL is wanted and missing.
    """

    def __init__(
        self,
        manager: TransferManager,
        memory: KVMemory,
        *,
        num_token_ids: int,
        lease_seconds: float,
        peers: Mapping[Address, Address] | None = None,
        listens: Address = ("127.0.0.1", 0),
        address: Address | None = None,
        secret: bytes | None = None,
        num_streams: int = 4,
        transport: KVTransport = KVTransport.AUTO,
        any_peer: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        handshake.check_secret(secret)
        if transport is KVTransport.NIXL:
            nixl.prepare(on_loopback=secret is None)
        self._manager = manager
        self._setting = PeerSetting(memory, num_token_ids, secret, clock, num_streams, transport)
        self._known = dict(peers or {})
        self._knows_all = any_peer
        self._peers: dict[Address, Peer] = {}
        self._at: dict[int, Peer] = {}  # where a request is wanted from
        self._sourceless: dict[int, Pull] = {}  # what takes a pull out of here answers for it
        self._failures = Counter(dict.fromkeys(Failure, 0))  # every key from the start: several threads use it
        self.lender = Lender(manager, Seal(clock), block_size=memory.layout.block_size, clock=clock)
        self.server = LenderServer(
            self.lender,
            memory,
            lease_seconds=lease_seconds,
            host=listens[0],
            port=listens[1],
            secret=secret,
            transport=transport,
            clock=clock,
        )
        self.address: Address = address or (listens[0], self.server.port)

    # -- D -------------------------------------------------------------------------------------------------------

    def want(self, uid: int, params: Mapping[str, Any]) -> None:
        """A request that pulls is about to be added: P is to keep what it lends, however long the queue is here.

        Raises ValueError, saying why, if nothing can be pulled: it is better to add it as a request of its own.
        """
        peer, text = self._find(params)
        self._at[uid] = peer
        peer.post(lambda receiver: receiver.want(uid, text))

    def pull(self, pull: Pull) -> None:
        """The writer: read the KV of a prompt. `receive_done` follows, when nothing writes any more."""
        uid, params = pull.request.uid, pull.request.kv_transfer_params
        if params is None:
            self._sourceless[uid] = pull
            return
        try:
            peer, text = self._find(params)
        except ValueError as error:
            self._done(uid, None, str(error))
            return
        self._at[uid] = peer
        peer.post(lambda receiver: receiver.pull(pull, text))

    def pull_from(self, uid: int, params: Mapping[str, Any] | None) -> None:
        """The source of a pull without parameters; None: there is none. Uids of other requests are ignored."""
        if uid not in self._sourceless:
            return
        try:
            if params is None:
                raise ValueError("no engine lends it")
            peer, text = self._find(params, everywhere=self._knows_all)
        except ValueError as error:
            if self._sourceless.pop(uid, None) is not None:
                self._done(uid, None, str(error))
            return
        self._at[uid] = peer  # before the peer's thread has it: from then on, `stop_pull` must find the peer
        peer.post(partial(self._pull_from, uid, text))

    def stop_pull(self, uid: int) -> None:
        """The writer: the KV of this request is not wanted any more. `receive_done` follows, if it has not come yet."""
        if self._sourceless.pop(uid, None) is not None:
            self._done(uid, None, "it was stopped before its source was named")
            return
        peer = self._at.get(uid)
        if peer is None:  # of a reservation: nothing here writes to its blocks
            self._done(uid, None, "nothing was pulled for it")
        else:
            peer.post(partial(self._stop_pull, uid))

    def unwant(self, uid: int) -> None:
        """A request that was wanted has ended, or was refused. Any thread; other uids are ignored."""
        peer = self._at.get(uid)
        if peer is not None:
            peer.post(partial(self._unwant, uid))

    def answered(self, uids: LongArray) -> None:
        """The writer: these requests, int64, have got a token. If one of them was wanted and never pulled, because its
        prompt was short or in the cache, P need not keep it any longer."""
        for uid in self._at.keys() & uids.tolist() if self._at else ():
            self.unwant(uid)

    def check_peers(self) -> None:
        """Look at the clock again."""
        for peer in list(self._peers.values()):
            peer.wake()

    # -- P -------------------------------------------------------------------------------------------------------

    def expect(self, request: Request) -> None:
        """A request that lends is about to be added. If it is refused, `ended` must follow."""
        self.lender.expect(request)

    def lending(self, lending: Lending) -> None:
        """The writer: another engine may read this much of a prompt from now on."""
        self.lender.lending(lending)

    def revoked(self, uid: int) -> None:
        """The writer: this lease has ended."""
        self.lender.revoked(uid)

    def ended(self, uids: Iterable[int]) -> None:
        """The writer: these requests have ended. Leases that have begun go on."""
        for uid in uids:
            self.lender.ended(uid)
            self.unwant(uid)

    def begin_anew(self) -> None:
        """The writer: a new incarnation of this engine, as the KV of the last one is gone or out of date. The core has
        ended its leases."""
        self.lender.begin_anew(Seal(self._setting.clock))
        self.server.cut()

    def handover(self, uid: int) -> dict[str, Any] | None:
        """The `kv_transfer_params` of a request that lends, from `expect` on; None if nothing is lent (any more)."""
        text = self.lender.reference(uid)
        return None if text is None else Handover(*self.address, text).params()

    # -- both ----------------------------------------------------------------------------------------------------

    @property
    def peers(self) -> list[Peer]:
        """The peers that something was wanted of."""
        return list(self._peers.values())

    def failures(self) -> Counter[Failure]:
        """Pulls that have failed, by reason."""
        return sum((peer.receiver.failures for peer in self.peers), Counter(self._failures))

    def counts(self) -> TransferCounts:
        """What was moved, and the state of all peers. Any thread."""
        peers, server = self.peers, self.server
        idle = set(self._known.values()) - {(peer.host, peer.port) for peer in peers}
        failures = self.failures()
        return TransferCounts(
            peers=by_state([peer.state for peer in peers], len(idle)),
            borrowers=self.lender.num_borrowers,
            bytes_read={way.value: sum(peer.bytes_by_transport[way] for peer in peers) for way in WAYS},
            bytes_sent={way.value: count for way, count in server.bytes_sent.items()},
            seconds={way.value: sum(peer.seconds_by_transport[way] for peer in peers) for way in WAYS},
            failures={failure.value: failures[failure] for failure in Failure},
            num_refused=server.num_refused,
            num_bad_messages=server.num_bad_messages + sum(peer.num_bad_messages for peer in peers),
        )

    def peer_of(self, uid: int) -> str | None:
        """HOST:PORT of the engine that the KV of this request comes from or goes to; None if there is none (yet). Any
        thread."""
        peer = self._at.get(uid)
        return self.lender.borrower_of(uid) if peer is None else f"{peer.host}:{peer.port}"

    def close(self) -> None:
        """Stop everything, and wait for it. All pulls are answered."""
        for uid in list(self._sourceless):
            self.pull_from(uid, None)
        for peer in self.peers:
            peer.close()
        self.server.close()

    def _find(self, params: Mapping[str, Any], *, everywhere: bool = False) -> tuple[Peer, str]:
        try:
            handover = Handover.of(params)
        except ValueError:
            self._failures[Failure.BAD_PARAMS] += 1
            raise
        name = (handover.host, handover.port)
        address = name if everywhere else self._known.get(name)
        if address is None:
            self._failures[Failure.UNKNOWN_PEER] += 1
            raise ValueError(f"{name[0]}:{name[1]} is not among the KV peers of this engine (--kv-peers)")
        peer = self._peers.get(address)
        if peer is None:
            made = Peer(*address, self._setting, self._done)
            peer = self._peers.setdefault(address, made)
            if peer is not made:  # another thread was faster
                made.close()
        return peer, handover.reference

    def _pull_from(self, uid: int, text: str, receiver: Receiver) -> None:
        pull = self._sourceless.pop(uid, None)
        if pull is None:  # it was stopped, and answered
            self._at.pop(uid, None)
        else:
            receiver.pull(pull, text)

    def _stop_pull(self, uid: int, receiver: Receiver) -> None:
        if not receiver.stop(uid) and uid in self._at:  # it was wanted, and had no blocks
            self._done(uid, None, "nothing was pulled for it")

    def _unwant(self, uid: int, receiver: Receiver) -> None:
        if not receiver.stop(uid):
            self._at.pop(uid, None)

    def _done(self, uid: int, token: int | None, error: str | None) -> None:
        self._at.pop(uid, None)
        try:
            self._manager.receive_done(uid, token, error)
        except EngineDeadError:
            logger.debug("the engine has stopped; the pull of request %d needs no answer", uid)
