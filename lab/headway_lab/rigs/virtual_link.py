"""P and D on virtual time: lender and receiver of a real connector, and between them a network of two numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from headway.request import Request, Transfer
from headway.scheduler import AddRequest, ConsumeLease, Effects, LeasesEnded, LeasesRenewed, ReceiveDone
from headway.scheduler.effects import Pull
from headway.transfer.layout import KVLayout
from headway.transfer.lender import Lender
from headway.transfer.messages import AnyMessage
from headway.transfer.reader import Slice
from headway.transfer.receiver import Receiver
from headway.transfer.reference import Seal
from headway_lab.rigs.virtual_engine import VOCAB_SIZE, VirtualEngine
from headway_lab.rigs.virtual_time import VirtualTime

MOST_READING = 2  # slices: as many as one reader has in an engine


@dataclass(frozen=True, slots=True)
class Network:
    """name: how blocks are read. bytes_per_s: of blocks; infinite: they are there at once. message_s: seconds that any
    message is on its way.

    Raises ValueError for numbers that no network has.
    """

    name: str
    bytes_per_s: float = math.inf
    message_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.bytes_per_s > 0:
            raise ValueError(f"a network must bring more than 0 bytes per second, got {self.bytes_per_s}")
        if not 0 <= self.message_s < math.inf:
            raise ValueError(f"a message must take at least 0 seconds, got {self.message_s}")


class VirtualLink:
    """Requests go to D. D reserves, P is asked to compute and to lend, and D pulls chunk by chunk meanwhile.

        D   slot and blocks --> P   prompt, chunks  ==blocks==> D --> consume --> P: valid --> D   first token

    after_prefill: P is asked first, and D gets the request when all is computed, as routers do it.
    bytes_read: by D. num_consumed: prompts whose KV D has got.
    """

    def __init__(
        self,
        time: VirtualTime,
        p: VirtualEngine,
        d: VirtualEngine,
        layout: KVLayout,
        network: Network,
        *,
        after_prefill: bool = False,
    ) -> None:
        self.bytes_read = 0
        self._time, self._p, self._d = time, p, d
        self._block_bytes = layout.block_bytes
        self._network = network
        self._after_prefill = after_prefill
        self._asked: dict[int, Pull] = {}  # P has been asked, and D does not know yet what it lends
        self._for_d: dict[int, Request] = {}  # requests that D gets when P has computed the prompt
        self._wire_free_at = 0.0
        self._lender = Lender(self, Seal(time), block_size=layout.block_size, clock=time)
        self._borrower = self._lender.borrower(lambda: time.at(time.now, self._tell_news))
        self._receiver = Receiver(layout, VOCAB_SIZE, self._received)
        lease_seconds = p.core.config.lend_timeout
        self._receiver.connected(self._lender.seal.engine, layout.num_blocks, lease_seconds, time.now)
        self._beat()

    @property
    def num_consumed(self) -> int:
        """Prompts whose KV has come whole, and counts."""
        return self._receiver.num_received

    def add(self, request: Request) -> None:
        """A client sends a request."""
        pulling = replace(request, transfer=Transfer.PULL)
        if self._after_prefill:
            self._for_d[request.uid] = pulling
            self._ask_p(request)
        else:
            self._d.tell(AddRequest(pulling))

    # -- effects -------------------------------------------------------------------------------------------------

    def of_p(self, effects: Effects) -> None:
        """What has come of a message or pass on P."""
        for lending in effects.lending:
            self._lender.lending(lending)
        for uid in effects.revoked:
            self._lender.revoked(uid)
        for end in effects.ended:
            self._lender.ended(end.uid)
            if end.uid in self._for_d:
                self._time.after(self._network.message_s, partial(self._hand_over, self._for_d.pop(end.uid)))

    def of_d(self, effects: Effects) -> None:
        """What has come of a message or pass on D."""
        for uid in effects.stopped_pulls:
            if self._asked.pop(uid, None) is not None:
                self._received(uid, None, "nothing was read yet")
            else:
                self._receiver.stop(uid)
        for pull in effects.pulls:
            if self._after_prefill:
                self._receiver.pull(pull, str((pull.request.kv_transfer_params or {})["reference"]))
            else:
                self._asked[pull.request.uid] = pull
                self._time.after(self._network.message_s, partial(self._ask_p, pull.request))
        self._flush()

    # -- from D to P and back ------------------------------------------------------------------------------------

    def _ask_p(self, request: Request) -> None:
        lending = replace(request, transfer=Transfer.LEND, max_tokens=1)
        self._lender.expect(lending)
        self._p.tell(AddRequest(lending))
        reference = self._lender.reference(request.uid)
        if not self._after_prefill and reference is not None:
            self._time.after(self._network.message_s, partial(self._begin, request.uid, reference))

    def _begin(self, uid: int, reference: str) -> None:
        """D knows what P lends."""
        pull = self._asked.pop(uid, None)
        if pull is not None:
            self._receiver.pull(pull, reference)
            self._flush()

    def _hand_over(self, request: Request) -> None:
        """P has computed the prompt: the router sends the request to D."""
        reference = self._lender.reference(request.uid)
        if reference is None:
            self._d.tell(AddRequest(replace(request, transfer=None)))
            return
        self._receiver.want(request.uid, reference)
        self._flush()
        self._d.tell(AddRequest(replace(request, kv_transfer_params={"reference": reference})))

    def _flush(self) -> None:
        """Send what the receiver says, and read what it may."""
        receiver, network, time = self._receiver, self._network, self._time
        while receiver.num_reading < MOST_READING and (part := receiver.next_slice()) is not None:
            num_bytes = len(part.targets) * self._block_bytes
            self._wire_free_at = max(time.now, self._wire_free_at) + num_bytes / network.bytes_per_s
            time.at(self._wire_free_at, partial(self._read_done, part, num_bytes))
        for message in receiver.outbox:
            time.after(network.message_s, partial(self._to_p, message))
        receiver.outbox.clear()

    def _read_done(self, part: Slice, num_bytes: int) -> None:
        self.bytes_read += num_bytes
        self._receiver.read_done(part, None)
        self._flush()

    def _to_p(self, message: AnyMessage) -> None:
        self._send(self._borrower.take(message))
        self._tell_news()

    def _tell_news(self) -> None:
        self._send(self._borrower.news())

    def _send(self, messages: list[AnyMessage]) -> None:
        for message in messages:
            self._time.after(self._network.message_s, partial(self._to_d, message))

    def _to_d(self, message: AnyMessage) -> None:
        self._receiver.take(message)
        self._flush()

    def _beat(self) -> None:
        """The receiver's heartbeats."""
        self._receiver.tick(self._time.now)
        self._flush()
        self._time.after(self._receiver.seconds_left(self._time.now), self._beat)

    def _received(self, uid: int, token: int | None, error: str | None) -> None:
        self._time.at(self._time.now, partial(self._d.tell, ReceiveDone(uid, token, error)))

    # -- the manager of P, as a lender knows it ------------------------------------------------------------------

    def consume_lease(self, uid: int, generation: int, timeout: float = 0.0) -> bool:
        """See `LeaseManager`."""
        return self._p.ask(ConsumeLease(0, uid, generation)) is True

    def renew_leases(self, uids: Iterable[int]) -> None:
        """See `LeaseManager`."""
        self._p.tell(LeasesRenewed(tuple(uids)))

    def end_leases(self, uids: Iterable[int]) -> None:
        """See `LeaseManager`."""
        self._p.tell(LeasesEnded(tuple(uids)))
