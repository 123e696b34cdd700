"""The other side of an engine that computes only one phase: the D of a P, or the P of a D."""

from __future__ import annotations

from typing import NamedTuple

from headway.config import Role
from headway.errors import QueryError
from headway.request import FinishReason, Request
from headway.scheduler import (
    DropReservations,
    Effects,
    Reservation,
    ReserveDecode,
    ReservePrefill,
    SendDone,
    StartDecode,
    StartPrefill,
)
from headway.scheduler.batch import IntArray
from headway.simulation.device import OracleDevice
from headway.simulation.digests import Words
from headway.simulation.history import Ends, Life, Violation, require
from headway.simulation.setting import Setting
from headway.simulation.shapes import Shape
from headway.simulation.watched import WatchedCore


class Lease(NamedTuple):
    """Blocks that a sender reads, and what they held when they were handed over: uint64 [num_tokens]."""

    blocks: IntArray
    held: Words


class Partner:
    """Asks for reservations, takes them up or not, sends KV and receives it. One method for each event.

    seats: reservations that are not taken up. leases: what is being sent, by uid; also of requests that have ended.
    seated: uids that ever had a reservation. arrived: those with KV from P and no step yet, with how many tokens of it
    were cached here before.
    """

    def __init__(self, setting: Setting, core: WatchedCore, device: OracleDevice) -> None:
        self.seats: dict[int, Reservation] = {}
        self.leases: dict[int, Lease] = {}
        self.seated: set[int] = set()
        self.arrived: dict[int, int] = {}
        self._config = setting.config
        self._core = core
        self._device = device

    def after(self, effects: Effects) -> None:
        """Whoever has ended holds no seat any more; what is to be sent is looked at."""
        for end in effects.ended:
            self.seats.pop(end.uid, None)
        for sending in effects.sending:
            life = self._core.history.live[sending.uid]
            held = self._device.send(life.request, sending.blocks, sending.num_tokens)
            self.leases[sending.uid] = Lease(sending.blocks, held)
            life.deadline = self._core.now + self._config.send_timeout

    def device_lost(self) -> None:
        """What is being sent is gone; its blocks are still lent."""
        for uid, (blocks, held) in self.leases.items():
            self.leases[uid] = Lease(blocks, self._device.read(blocks, len(held)))

    def reserve(self, *args: int) -> None:
        """Ask for a reservation. args: a shape, the role it is for, and its time limit in milliseconds."""
        *shape_args, which, timeout_ms = args
        shape, role = Shape(*shape_args)._replace(prepare=0), (Role.PREFILL, Role.DECODE)[which]
        request, timeout = shape.request(self._core.now), timeout_ms / 1000

        def query(reply: int) -> ReservePrefill | ReserveDecode:
            return ReservePrefill(reply, request) if which == 0 else ReserveDecode(reply, request, timeout)

        def accept(seat: object) -> None:
            if seat is None:
                empty = not self._core.history.live and not self.leases and not self._core.paused
                require(not empty, "refused for nothing", f"request {shape.uid} gets no reservation where nobody is")
                return
            require(not self._core.paused, "reserved while paused", f"request {shape.uid}")
            until = self._core.now + (self._config.reservation_timeout if which == 0 else timeout)
            life = Life(shape, request, reserved=True, deadline=until)
            self._core.expect(life, request)
            self._core.history.accept(life)
            self.seats[shape.uid] = self._checked(seat, request)
            self.seated.add(shape.uid)

        if shape.uid in self._core.history.ended:
            return
        in_use = shape.uid in self._core.history.live
        if role is not self._config.role or in_use or not self._core.can_serve(request):
            self._core.refuses(query(0), QueryError)
        else:
            self._core.ask(query, accept)

    def _checked(self, seat: object, request: Request) -> Reservation:
        if not isinstance(seat, Reservation):
            raise Violation("bad answer", f"a reservation for {request.uid}: {seat}")
        needed = len(request.prompt) + (1 if self._config.role is Role.DECODE else 0)
        room = len(seat.blocks) * self._config.block_size
        fits = seat.uid == request.uid and 0 <= seat.num_cached_tokens < needed <= room
        if not fits:
            raise Violation("bad answer", f"{seat} for {needed} tokens of request {request.uid}")
        return seat

    def _take_seat(self, uid: int, role: Role) -> tuple[Life, Reservation] | None:
        """Whoever holds a reservation, and may take it up here, does."""
        if uid not in self.seats or self._config.role is not role:
            return None
        life = self._core.history.live[uid]
        life.reserved, life.deadline = False, None
        return life, self.seats.pop(uid)

    def start_prefill(self, *uids: int) -> None:
        """D has agreed."""
        for uid in uids:
            if (taken := self._take_seat(uid, Role.PREFILL)) is not None:
                taken[0].sends = True
        self._core.tell(StartPrefill(uids))

    def start_decode(self, uid: int) -> None:
        """The KV has come from P; not before the steps are over that may still write to its blocks."""
        reserved = self.seats.get(uid)
        if reserved is not None and any(step <= reserved.after_step for step in self._core.in_flight):
            return
        taken = self._take_seat(uid, Role.DECODE)
        if taken is None:
            self._core.tell_in_vain(StartDecode(uid, 3))
            return
        life, seat = taken
        self._device.receive(life.request, seat.blocks, seat.num_cached_tokens)
        self.arrived[uid] = seat.num_cached_tokens
        self._core.tell(StartDecode(uid, life.answer[0]), Ends(natural=True))

    def drop(self, *uids: int) -> None:
        """The other side has failed."""
        reserved = [uid for uid in uids if uid in self.seats]
        self._core.tell(DropReservations(uids), self._core.must_end(reserved, FinishReason.ABORT))

    def sent(self, uid: int, failed: int) -> None:
        """The sender is done with the blocks, whatever has become of it."""
        message = SendDone(uid, "D is gone" if failed else None)
        lease = self.leases.pop(uid, None)
        if lease is None:
            self._core.tell_in_vain(message)
            return
        intact = bool((self._device.read(lease.blocks, len(lease.held)) == lease.held).all())
        require(intact, "lent and written to", f"the blocks of request {uid}, while they are sent")
        self._core.tell(message, self._core.must_end([uid], FinishReason.ERROR) if failed else Ends(natural=True))
        require(uid not in self._core.history.live, "not ended at once", f"request {uid}, whose KV is sent")
