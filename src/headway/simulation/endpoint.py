"""One engine's end of the network: what its writer and its connector do, without threads and sockets.

The real `Lender` is P's side of it, and a real `Receiver` for each peer is D's. What the core says reaches them late,
and so does what they say to the core.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from headway.request import Request, Transfer
from headway.scheduler import Effects, LeasesEnded, LeasesRenewed, ReceiveDone
from headway.scheduler.effects import Pull
from headway.simulation.device import OracleDevice
from headway.simulation.history import require
from headway.simulation.kv_ledger import KVLedger
from headway.simulation.partner import Partner
from headway.simulation.setting import Setting
from headway.simulation.shapes import Shape
from headway.simulation.watched import WatchedCore
from headway.transfer.handover import Handover
from headway.transfer.lender import Lender
from headway.transfer.receiver import Receiver
from headway.transfer.reference import Seal

Command = Callable[[Receiver], None]
NOTHING_PULLED = "nothing was pulled for it"


class Peer(Protocol):
    """A P, as D's end of the network knows it."""

    def post(self, command: Command) -> None:
        """To be run on the thread of this peer, some time."""


class Endpoint(KVLedger):
    """Both sides of an engine, as `transfer.connector` has them for threads.

    peers: by host. filling: pulls that readers may write for. on_handover: told of the reference of each lease that
    begins, by uid. on_void: told that this engine is another one for its peers from now on. is_stuck: the writer
    answers no query.
    """

    def __init__(
        self,
        setting: Setting,
        core: WatchedCore,
        device: OracleDevice,
        partner: Partner,
        *,
        seal: Seal,
        clock: Callable[[], float],
        reference_seconds: float,
        on_handover: Callable[[int, str], None],
        on_void: Callable[[], None],
    ) -> None:
        super().__init__(setting, core, device, partner)
        size = setting.config.block_size
        self.lender = Lender(self, seal, block_size=size, clock=clock, lifetime=reference_seconds)
        self.peers: dict[str, Peer] = {}
        self.filling: dict[int, Pull] = {}
        self.is_stuck = False
        self._news: deque[Effects] = deque()
        self._mailbox: deque[ReceiveDone | LeasesRenewed | LeasesEnded] = deque()
        self._at: dict[int, Peer] = {}
        self._on_handover, self._on_void = on_handover, on_void
        self._told: set[int] = set()  # uids of pulls that are over

    @property
    def num_news(self) -> int:
        """Effects that the connector has not heard of."""
        return len(self._news)

    @property
    def num_messages(self) -> int:
        """Messages that the core has not heard of."""
        return len(self._mailbox)

    @property
    def num_wanted(self) -> int:
        """Requests that the connector knows of, on either side."""
        return len(self._at) + len(self.lender)

    # -- requests ------------------------------------------------------------------------------------------------

    def prefill(self, shape: Shape, tail: int) -> str | None:
        """A router's request to P, which lends its KV. Returns the reference that D may have from now on; None if the
        uid was used before."""
        if self._is_known(shape.uid):
            return None
        request = self._request(shape, tail, Transfer.LEND, None)
        self.lender.expect(request)
        text = self.lender.reference(shape.uid)
        self._add(shape, request)
        return text

    def decode(self, shape: Shape, tail: int, params: Mapping[str, Any] | None) -> None:
        """A request to D. Where nothing can be pulled, its prompt is computed here."""
        if self._is_known(shape.uid):
            return
        request = self._request(shape, tail, Transfer.PULL, params)
        try:
            peer, text = self._find(params or {})
        except ValueError:
            self.counts["parameters refused"] += 1
            request = replace(request, transfer=None)
        else:
            self._at[shape.uid] = peer
            peer.post(lambda receiver: receiver.want(shape.uid, text))
        self._add(shape, request)

    def _is_known(self, uid: int) -> bool:
        return uid in self._core.history.ended or uid in self._core.history.live

    def _request(self, shape: Shape, tail: int, transfer: Transfer, params: Mapping[str, Any] | None) -> Request:
        """The prompt goes by `tail`, not by the uid, which is another one on each engine."""
        request = shape._replace(uid=tail, prepare=0).request(self._core.now)
        return replace(request, uid=shape.uid, request_id=f"r{shape.uid}", transfer=transfer, kv_transfer_params=params)

    def _find(self, params: Mapping[str, Any]) -> tuple[Peer, str]:
        handover = Handover.of(params)
        peer = self.peers.get(handover.host)
        if peer is None:
            raise ValueError(f"{handover.host} is not among the KV peers")
        return peer, handover.reference

    # -- the writer ----------------------------------------------------------------------------------------------

    def after(self, effects: Effects) -> None:
        """Note them, and keep them for the connector."""
        super().after(effects)
        if effects:
            self._news.append(effects)

    def carry_out(self, count: int) -> int:
        """The connector hears of the oldest effects. Returns how many there were."""
        number = min(count, len(self._news))
        for _ in range(number):
            self._carry_out(self._news.popleft())
        return number

    def _carry_out(self, effects: Effects) -> None:
        for part in effects.lending:
            self.lender.lending(part)
            if part.token is not None and (text := self.lender.reference(part.uid)) is not None:
                self._on_handover(part.uid, text)
        for uid in effects.revoked:
            self.lender.revoked(uid)
        for uid in effects.stopped_pulls:
            self._stop_pull(uid)
        for pull in effects.pulls:
            self._pull(pull)
        for outputs in effects.tokens:
            for uid in self._at.keys() & outputs.uids.tolist():
                self._unwant(uid)
        for end in effects.ended:
            self.lender.ended(end.uid)
            self._unwant(end.uid)
        if effects.kv_is_void:
            self._on_void()

    def drain(self, count: int) -> int:
        """The core hears of the oldest messages of the connector. Returns how many there were."""
        number = min(count, len(self._mailbox))
        for _ in range(number):
            self._tell(self._mailbox.popleft())
        return number

    def _tell(self, message: ReceiveDone | LeasesRenewed | LeasesEnded) -> None:
        match message:
            case LeasesRenewed(uids):
                self.counts["leases renewed"] += len(self.lent.keys() & set(uids))
                self._renew(uids)
            case LeasesEnded(uids):
                self.counts["leases let go"] += len(self.lent.keys() & set(uids))
                self._release(uids)
            case ReceiveDone(uid, token, error):
                pull = self.pulls.get(uid)
                if pull is None and uid not in self.quarantined:
                    self.counts["told twice that a pull is over"] += 1
                    self._core.tell_in_vain(message)
                    return
                if pull is not None and error is None and uid not in self.quarantined:
                    self._device.prompt_at(pull.request, pull.blocks, len(pull.request.prompt))  # no other KV has come
                self._receive_done(uid, token, error)

    # -- the connector, D ----------------------------------------------------------------------------------------

    def _pull(self, pull: Pull) -> None:
        uid = pull.request.uid
        peer, text = self._find(pull.request.kv_transfer_params or {})
        self._at[uid] = peer
        self.filling[uid] = pull
        peer.post(lambda receiver: receiver.pull(pull, text))

    def _stop_pull(self, uid: int) -> None:
        peer = self._at.get(uid)
        if peer is not None:
            peer.post(lambda receiver: self._stop(uid, receiver))
        elif uid in self._told:  # the pull is over, and the core has not heard of it yet: it hears of it twice
            self._mailbox.append(ReceiveDone(uid, None, NOTHING_PULLED))
        else:  # of a reservation
            self.done(uid, None, NOTHING_PULLED)

    def _stop(self, uid: int, receiver: Receiver) -> None:
        if not receiver.stop(uid) and uid in self._at:
            self.done(uid, None, NOTHING_PULLED)

    def _unwant(self, uid: int) -> None:
        peer = self._at.get(uid)
        if peer is not None:
            peer.post(lambda receiver: None if receiver.stop(uid) else self._forget(uid))

    def _forget(self, uid: int) -> None:
        self._at.pop(uid, None)

    def done(self, uid: int, token: int | None, error: str | None) -> None:
        """Of a receiver: a pull is over, and no reader writes for it any more."""
        awaited = (uid in self.pulls or uid in self.quarantined) and uid not in self._told
        require(awaited, "done twice", f"the pull of request {uid}")
        if error is not None and error != NOTHING_PULLED:
            self.counts[f"pulls lost: {error.split(':')[0]}"] += 1
        self._at.pop(uid, None)
        self.filling.pop(uid, None)
        self._told.add(uid)
        self._mailbox.append(ReceiveDone(uid, token, error))

    # -- the connector, P: a LeaseManager ------------------------------------------------------------------------

    def consume_lease(self, uid: int, generation: int, timeout: float = 5.0) -> bool:
        """See `Manager`. All messages that came before are applied before."""
        if self.is_stuck:
            raise TimeoutError(f"the writer has not answered for {timeout:g} s")
        self.drain(len(self._mailbox))
        return self._consume(uid, generation)

    def renew_leases(self, uids: Iterable[int]) -> None:
        """See `Manager`."""
        self._mailbox.append(LeasesRenewed(tuple(uids)))

    def end_leases(self, uids: Iterable[int]) -> None:
        """See `Manager`."""
        self._mailbox.append(LeasesEnded(tuple(uids)))
