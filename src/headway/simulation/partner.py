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
    """Blocks that a sender reads. held: their contents when the lease began, uint64 [num_tokens]."""

    blocks: IntArray
    held: Words


class Partner:
    """Asks for reservations, starts or drops them, sends KV and receives it. One method for each event.

    reservations: by uid, until they start. former: that ended without a start. leases: by uid, also of requests that
    have ended. reserved_uids: uids that ever had a reservation. arrived: uids with KV from P and no step yet -> the
    number of tokens that were cached here before.
    """

    def __init__(self, setting: Setting, core: WatchedCore, device: OracleDevice) -> None:
        self.reservations: dict[int, Reservation] = {}
        self.former: dict[int, Reservation] = {}
        self.leases: dict[int, Lease] = {}
        self.reserved_uids: set[int] = set()
        self.arrived: dict[int, int] = {}
        self._config = setting.config
        self._core = core
        self._device = device

    def after(self, effects: Effects) -> None:
        """Drop the reservations of ended requests, and check blocks that are to be sent."""
        for end in effects.ended:
            if end.uid in self.reservations:
                self.former[end.uid] = self.reservations.pop(end.uid)
        for sending in effects.sending:
            life = self._core.history.live[sending.uid]
            held = self._device.send(life.request, sending.blocks, sending.num_tokens)
            self.leases[sending.uid] = Lease(sending.blocks, held)
            life.deadline = self._core.now + self._config.send_timeout

    def device_lost(self) -> None:
        """The contents of lent blocks are lost. The leases go on."""
        for uid, (blocks, held) in self.leases.items():
            self.leases[uid] = Lease(blocks, self._device.read(blocks, len(held)))

    def reserve(self, *args: int) -> None:
        """Ask for a reservation. args: a shape, the role it is for, and its time limit in milliseconds."""
        *shape_args, which, timeout_ms = args
        shape, role = Shape(*shape_args)._replace(prepare=0), (Role.PREFILL, Role.DECODE)[which]
        request, timeout = shape.request(self._core.now), timeout_ms / 1000

        def query(reply: int) -> ReservePrefill | ReserveDecode:
            return ReservePrefill(reply, request) if which == 0 else ReserveDecode(reply, request, timeout)

        def accept(reservation: object) -> None:
            if reservation is None:
                held = self._core.snapshot.num_blocks_quarantined + self._core.snapshot.num_blocks_lent
                held += self._core.snapshot.num_slots_quarantined
                admits = not self._core.paused and not self._core.held
                empty = not self._core.history.live and not self.leases and not held and admits
                require(not empty, "refused for nothing", f"request {shape.uid} gets no reservation in an empty engine")
                return
            require(not self._core.paused, "reserved while paused", f"request {shape.uid}")
            require(not self._core.held, "held", f"request {shape.uid} gets a reservation")
            until = self._core.now + (self._config.reservation_timeout if which == 0 else timeout)
            life = Life(shape, request, reserved=True, deadline=until)
            self._core.expect(life, request)
            self._core.history.accept(life)
            self.reservations[shape.uid] = self._checked(reservation, request)
            self.reserved_uids.add(shape.uid)

        if shape.uid in self._core.history.ended:
            return
        in_use = shape.uid in self._core.history.live
        if role is not self._config.role or in_use or not self._core.can_serve(request):
            self._core.refuses(query(0), QueryError)
        else:
            self._core.ask(query, accept)

    def _checked(self, reservation: object, request: Request) -> Reservation:
        if not isinstance(reservation, Reservation):
            raise Violation("bad answer", f"a reservation for {request.uid}: {reservation}")
        needed = len(request.prompt) + (1 if self._config.role is Role.DECODE else 0)
        room = len(reservation.blocks) * self._config.block_size
        fits = reservation.uid == request.uid and 0 <= reservation.num_cached_tokens < needed <= room
        if not fits:
            raise Violation("bad answer", f"{reservation} for {needed} tokens of request {request.uid}")
        return reservation

    def _start_reservation(self, uid: int, role: Role) -> tuple[Life, Reservation] | None:
        """Start the reservation of `uid`; None if there is none, or if the engine has another role."""
        if uid not in self.reservations or self._config.role is not role:
            return None
        life = self._core.history.live[uid]
        life.reserved, life.deadline = False, None
        return life, self.reservations.pop(uid)

    def start_prefill(self, *uids: int) -> None:
        """D has a reservation too: P starts the prefills."""
        for uid in uids:
            if (taken := self._start_reservation(uid, Role.PREFILL)) is not None:
                taken[0].sends = True
        self._core.tell(StartPrefill(uids))

    def start_decode(self, uid: int) -> None:
        """The KV has come from P. Does nothing while a step in flight may still write to the reserved blocks."""
        reserved = self.reservations.get(uid)
        if reserved is not None and any(step <= reserved.after_step for step in self._core.in_flight):
            return
        taken = self._start_reservation(uid, Role.DECODE)
        if taken is None:
            self._core.tell_in_vain(StartDecode(uid, 3))
            return
        life, reservation = taken
        self._device.receive(life.request, reservation.blocks, reservation.num_cached_tokens)
        self.arrived[uid] = reservation.num_cached_tokens
        self._core.tell(StartDecode(uid, life.answer[0]), Ends(natural=True))

    def drop(self, *uids: int) -> None:
        """The other side has failed: the reservations are dropped."""
        reserved = [uid for uid in uids if uid in self.reservations]
        self._core.tell(DropReservations(uids), self._core.must_end(reserved, FinishReason.ABORT))

    def sent(self, uid: int, failed: int) -> None:
        """The sender no longer reads the blocks, whether it succeeded or failed."""
        message = SendDone(uid, "D is gone" if failed else None)
        lease = self.leases.pop(uid, None)
        if lease is None:
            self._core.tell_in_vain(message)
            return
        intact = bool((self._device.read(lease.blocks, len(lease.held)) == lease.held).all())
        require(intact, "lent and written to", f"the blocks of request {uid}, while they are sent")
        self._core.tell(message, self._core.must_end([uid], FinishReason.ERROR) if failed else Ends(natural=True))
        require(uid not in self._core.history.live, "not ended at once", f"request {uid}, whose KV is sent")
