"""What a core has said of the KV that it pulls and lends, and what must hold then, whatever the far side does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from headway.request import Request, RequestStatus, Transfer
from headway.scheduler import AddRequest, ConsumeLease, Effects, GetProgress, LeasesEnded, LeasesRenewed, ReceiveDone
from headway.scheduler.effects import Lending, Pull
from headway.simulation.device import OracleDevice
from headway.simulation.digests import Words
from headway.simulation.history import Ends, Life, require
from headway.simulation.partner import Partner
from headway.simulation.setting import Setting
from headway.simulation.shapes import Shape
from headway.simulation.watched import WatchedCore


@dataclass(slots=True)
class Lent:
    """A lease of a borrower. held: the contents of its blocks when it began. until: seconds. claimed: D wants it."""

    lending: Lending
    held: Words
    until: float
    claimed: bool = False


class KVLedger:
    """Pulls and leases of one core.

    pulls: by uid, told and not answered. quarantined: uids of pulls, and of reservations of D, that nothing is waiting
    for any more. lent: leases by uid. receiving: uids that hold slot and blocks for KV that is on its way.
    answered: uids of pulls that are over. counts: what came of pulls and leases.
    """

    def __init__(self, setting: Setting, core: WatchedCore, device: OracleDevice, partner: Partner) -> None:
        self.pulls: dict[int, Pull] = {}
        self.quarantined: set[int] = set()
        self.lent: dict[int, Lent] = {}
        self.receiving: set[int] = set()
        self.answered: set[int] = set()
        self.counts: Counter[str] = Counter()
        self._requests: dict[int, Request] = {}
        self._partner = partner
        self._config = setting.config
        self._core = core
        self._device = device

    @property
    def holds_any(self) -> bool:
        """Whether blocks are held for or by the other side."""
        return bool(self.pulls or self.quarantined or self.lent or self.receiving)

    # -- what the core says --------------------------------------------------------------------------------------

    def after(self, effects: Effects) -> None:
        """Note pulls and leases. What may be read must be there."""
        for uid in effects.stopped_pulls:
            require(uid not in self.quarantined, "stopped twice", f"the pull of request {uid}")
            self.quarantined.add(uid)
        for pull in effects.pulls:
            uid = pull.request.uid
            require(uid not in self.pulls and uid in self._core.history.live, "pulled without cause", f"request {uid}")
            self.pulls[uid] = pull
        for lending in effects.lending:
            self._note_lending(lending)
        for uid in effects.revoked:
            require(uid in self.lent, "revoked without cause", f"the lease of request {uid}")
            self.counts["leases revoked"] += 1
            del self.lent[uid]
        self._note_receiving()
        cap, lent = self._config.max_lent_blocks, self.lent.values()
        held = sum(len(one.lending.blocks) for one in lent)
        within = cap is None or held <= cap or all(one.claimed for one in lent)
        require(within, "lent too much", f"{held} blocks of {cap}")

    def _note_lending(self, lending: Lending) -> None:
        request = self._requests[lending.uid]
        held = self._device.prompt_at(request, lending.blocks, min(lending.num_tokens, len(request.prompt)))
        self.counts["chunks lent"] += 1
        if lending.token is not None:
            self.lent[lending.uid] = Lent(lending, held, self._core.now + self._config.lend_timeout)

    def _note_receiving(self) -> None:
        """Which requests wait for KV: the core gives them slot and blocks in a pass, and may give up."""
        core = self._core
        for uid, life in core.history.live.items():
            if life.request.transfer is not Transfer.PULL:
                continue
            progress = core.scheduler.ask(GetProgress(0, uid), core.told_at)
            receives = getattr(progress, "status", None) is RequestStatus.RECEIVING
            if receives and uid not in self.receiving:
                self.receiving.add(uid)
                life.deadline = core.told_at + self._config.receive_timeout
            elif not receives and uid in self.receiving:
                self.receiving.discard(uid)
                life.deadline = None
        self.receiving &= core.history.live.keys()

    # -- what the core is told -----------------------------------------------------------------------------------

    def _add(self, shape: Shape, request: Request) -> None:
        core = self._core
        life = Life(shape, request)
        self._requests[shape.uid] = request
        core.history.accept(life)
        core.tell(AddRequest(request), core.expect(life, request))

    def _receive_done(self, uid: int, token: int | None, error: str | None) -> None:
        """The connector has stopped; without an error all is there."""
        pull = self.pulls.pop(uid, None)
        stopped = uid in self.quarantined
        self.quarantined.discard(uid)
        if pull is None:
            if stopped:  # of a reservation
                reservation = self._partner.former[uid]
                self._device.scribble(reservation.blocks, reservation.num_cached_tokens)
                self.counts["reservations stopped"] += 1
                self._core.tell(ReceiveDone(uid, error=error))
            elif uid not in self._core.history.live:
                self._core.tell_in_vain(ReceiveDone(uid, error=error))
            return
        self.answered.add(uid)
        if stopped or error is not None:
            self.counts["pulls stopped" if stopped else "pulls failed"] += 1
            self._device.scribble(pull.blocks, pull.num_cached_tokens)
            self._core.tell(ReceiveDone(uid, error=error or "P is gone"))
            return
        self.counts["pulls ok" if token is None else "pulls ok, and P's token"] += 1
        self._partner.arrived[uid] = pull.num_cached_tokens
        if token is None:  # the KV of the last position is computed anew: nothing may rely on it before
            self._device.scribble(pull.blocks, len(pull.request.prompt) - 1)
        self._core.tell(ReceiveDone(uid, token), Ends(natural=True))

    def _consume(self, uid: int, generation: int) -> bool:
        """Whether the lease was there all the time: P's answer, which must be right."""
        one = self.lent.get(uid)
        valid = self._core.ask(lambda reply: ConsumeLease(reply, uid, generation))
        expected = one is not None and one.lending.generation == generation
        require(valid is expected, "bad answer", f"the lease of request {uid} is valid: {valid}")
        self.counts["leases consumed" if valid else "leases found void"] += 1
        if one is not None and expected:
            now = self._device.read(one.lending.blocks, len(one.held))
            require(bool((now == one.held).all()), "lent and written to", f"the blocks of request {uid}")
            del self.lent[uid]
        return expected

    def _renew(self, uids: Iterable[int]) -> None:
        """D wants these leases still."""
        uids = tuple(uids)
        for uid in uids:
            if uid in self.lent:
                self.lent[uid] = replace(self.lent[uid], until=self._core.now + self._config.lend_timeout, claimed=True)
        self._core.tell(LeasesRenewed(uids))

    def _release(self, uids: Iterable[int]) -> None:
        """D does not want these leases any more."""
        uids = tuple(uids)
        for uid in uids:
            self.lent.pop(uid, None)
        self._core.tell(LeasesEnded(uids))
