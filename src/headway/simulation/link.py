"""D's side of one peer, and the network between the two: connections that are cut, or fall silent, and reads that take
their time.

A connection delivers messages in order, as TCP does. What is on its way when it ends arrives, or its end is lost; each
side notices the end by itself, early or late, so D may have a new connection while P still reads from the old one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from headway.simulation.device import OracleDevice
from headway.simulation.digests import VOCAB
from headway.simulation.endpoint import Command, Endpoint
from headway.simulation.history import require
from headway.transfer import messages
from headway.transfer.layout import KVLayout, LayerSizes
from headway.transfer.lender import Borrower
from headway.transfer.messages import AnyMessage
from headway.transfer.reader import Slice
from headway.transfer.receiver import SLICE_BYTES, PeerSilentError, Receiver

NUM_STREAMS = 2


@dataclass(frozen=True, slots=True)
class Site:
    """Where a process of an engine can be found. lease_seconds: of P."""

    endpoint: Endpoint
    device: OracleDevice
    layout: KVLayout
    lease_seconds: float


def layout_of(block_size: int, num_blocks: int, slice_blocks: int) -> KVLayout:
    """Of a block so large that `slice_blocks` of them, a power of two, are read at once."""
    dim = SLICE_BYTES // slice_blocks // block_size // 8
    sizes = (LayerSizes(1, dim, 1, dim),)
    return KVLayout(block_size=block_size, layers=sizes, dtype="simulated", itemsize=4, model="", num_blocks=num_blocks)


class Read:
    """A slice on its way, place by place. blocks: of P, as far as P has allowed them."""

    def __init__(self, part: Slice, source: Site, shared: bool) -> None:
        self.part = part
        self.source = source
        self.blocks = part.sources if shared else None
        self.words = np.zeros(0, np.uint64)  # what sockets have brought and D has not stored
        self.num_stored = 0
        self.is_over = False
        self.error: str | None = None


@dataclass(eq=False, slots=True)
class Connection:
    """Between two processes. site: of P, as it was connected to. borrower: None as soon as P has left.

    heard: seconds, when P last heard of D. d_left: D has closed its side. is_closing: D is about to, and waits for its
    readers. is_silent: nothing arrives any more. is_woken: P's thread has been told that there is news.
    """

    site: Site
    borrower: Borrower | None
    heard: float
    to_p: deque[AnyMessage] = field(default_factory=deque)
    to_d: deque[AnyMessage] = field(default_factory=deque)
    reads: list[Read] = field(default_factory=list)
    d_left: bool = False
    is_closing: bool = False
    is_silent: bool = False
    is_woken: bool = False

    def lose(self, count: int) -> None:
        """The last messages never arrive, on either side."""
        for way in (self.to_p, self.to_d):
            for _ in range(min(count, len(way))):
                way.pop()

    def p_leaves(self) -> None:
        """P has noticed that it is over, or has died."""
        if self.borrower is not None:
            self.site.endpoint.lender.leave(self.borrower)
            self.borrower = None


class Link:
    """D's thread of one peer, and its connections, the newest last.

    find: the process of P that listens now; None: there is none. counts, num_moves: what has happened.
    """

    def __init__(self, mine: Site, find: Callable[[], Site | None], clock: Callable[[], float], shared: bool) -> None:
        self.connections: list[Connection] = []
        self.counts: Counter[str] = Counter()
        self.num_moves = 0
        self.receiver = Receiver(mine.layout, VOCAB, mine.endpoint.done)
        self._mine = mine
        self._find = find
        self._clock = clock
        self._shared = shared
        self._commands: deque[Command] = deque()

    def post(self, command: Command) -> None:
        """See `Peer`."""
        self._commands.append(command)

    @property
    def open(self) -> Connection | None:
        """The connection that D has, if it has any."""
        last = self.connections[-1] if self.connections else None
        return None if last is None or last.d_left else last

    @property
    def reading(self) -> Connection | None:
        """The connection whose readers may write: D closes none before they have stopped."""
        return self.open

    @property
    def seconds_left(self) -> float | None:
        """Until D's or P's thread has something to do without a message; None: never."""
        now, left = self._clock(), []
        if self.open is not None and not self.open.is_closing:
            left.append(self.receiver.seconds_left(now))
        left += [one.heard + 2 * one.site.lease_seconds - now for one in self.connections if one.borrower is not None]
        return max(0.0, min(left)) if left else None

    def can_serve(self) -> bool:
        """Whether D's thread has something to do, apart from the clock."""
        connection = self.open
        if connection is None:
            return bool(self._commands) or self.receiver.is_wanted
        if connection.is_closing:
            return all(read.is_over for read in connection.reads)
        arrives = not connection.is_silent and (bool(connection.to_d) or connection.borrower is None)
        return arrives or bool(self._commands) or any(read.is_over for read in connection.reads)

    def can_copy(self) -> bool:
        """Whether a read is on its way."""
        return self.reading is not None and any(not read.is_over for read in self.reading.reads)

    def can_listen(self) -> bool:
        """Whether P's threads have something to do, apart from the clock."""
        return any(
            one.borrower is not None and (one.is_woken or (not one.is_silent and (one.to_p or one.d_left)))
            for one in self.connections
        )

    # -- D's thread ----------------------------------------------------------------------------------------------

    def serve(self, count: int) -> None:
        """One round of D's thread, which takes so many messages."""
        connection, receiver = self.open, self.receiver
        if connection is not None and connection.is_closing:
            self._close(connection)  # the commands wait as long as the readers do
            return
        self.num_moves += len(self._commands)
        while self._commands:
            self._commands.popleft()(receiver)
        if connection is None:
            if receiver.is_wanted:
                self._connect()
            return
        if not self._take_reads(connection) or not self._take_messages(connection, count):
            connection.is_closing = True
            self.num_moves += 1
            return
        try:
            receiver.tick(self._clock())
        except PeerSilentError:
            self.counts["silent peers given up"] += 1
            self.num_moves += 1
            connection.is_closing = True
            return
        most = NUM_STREAMS * (1 if self._shared else 2)
        while receiver.num_reading < most and (part := receiver.next_slice()) is not None:
            connection.reads.append(Read(part, connection.site, self._shared))
            self.num_moves += 1
        connection.to_p.extend(receiver.outbox)
        self.num_moves += len(receiver.outbox)
        receiver.outbox.clear()

    def _connect(self) -> None:
        site = self._find()
        if site is None:
            self.counts["connections refused"] += 1
            self.receiver.lost("connection refused")
            return
        self.counts["connections"] += 1
        self.num_moves += 1
        connection = Connection(site, None, self._clock())

        def woken() -> None:
            connection.is_woken = True

        connection.borrower = site.endpoint.lender.borrower(woken)
        self.connections = [one for one in self.connections if one.borrower is not None]
        self.connections.append(connection)
        engine = site.endpoint.lender.seal.engine
        self.receiver.connected(engine, site.layout.num_blocks, site.lease_seconds, self._clock())

    def _take_reads(self, connection: Connection) -> bool:
        """Whether all readers are of use still."""
        for read in [read for read in connection.reads if read.is_over]:
            connection.reads.remove(read)
            self.num_moves += 1
            if read.error == "broken":
                return False
            self.receiver.read_done(read.part, read.error)
        return True

    def _take_messages(self, connection: Connection, count: int) -> bool:
        """Whether the connection lasts."""
        if connection.is_silent:
            return True
        for _ in range(min(count, len(connection.to_d))):
            self.num_moves += 1
            self.receiver.take(connection.to_d.popleft())
        return connection.borrower is not None or bool(connection.to_d)

    def _close(self, connection: Connection) -> None:
        """D closes its side, as soon as no reader writes any more."""
        if all(read.is_over for read in connection.reads):
            connection.reads.clear()
            self._lost(connection)

    def _lost(self, connection: Connection) -> None:
        connection.d_left = True
        self.counts["connections lost"] += 1
        self.num_moves += 1
        self.receiver.lost("the peer is out")

    # -- D's readers ---------------------------------------------------------------------------------------------

    def copy(self, which: int, count: int) -> None:
        """One of the reads goes on. Readers that are to stop may write a little more before they do."""
        connection = self.reading
        going = [read for read in connection.reads if not read.is_over] if connection is not None else []
        if connection is None or not going:
            return
        read = going[which % len(going)]
        if not count:
            if connection.is_closing:
                self.num_moves += 1
                read.is_over, read.error = True, "broken"
            return
        if not self._shared and connection.is_silent:
            if connection.is_closing:
                self.num_moves += 1
                read.is_over, read.error = True, "broken"
            return
        self.num_moves += 1
        if self._shared:
            self._copy_shared(read, count)
        else:
            self._copy_by_socket(read, count)

    def _copy_shared(self, read: Read, count: int) -> None:
        places = read.source.device.places_in(read.part.sources)[read.num_stored :][:count]
        self._store(read, read.source.device.load(places))

    def _copy_by_socket(self, read: Read, count: int) -> None:
        site, part = self._find(), read.part
        if read.blocks is None:  # a connection of its own: perhaps with another process than the first one
            if site is None:
                read.is_over, read.error = True, "broken"
                return
            ask = messages.Read(part.reference, part.generation, part.first, len(part.sources))
            try:
                read.blocks = site.endpoint.lender.readable(ask)
            except ValueError as error:
                self.counts["reads refused"] += 1
                read.is_over, read.error = True, str(error)
            read.source = site
            return
        places = read.source.device.places_in(read.blocks)
        num_loaded = read.num_stored + len(read.words)
        if num_loaded < len(places):
            if site is not read.source:
                read.is_over, read.error = True, "broken"
                return
            read.words = np.append(read.words, site.device.load(places[num_loaded:][:count]))
        else:
            words, read.words = read.words[:count], read.words[count:]
            self._store(read, words)

    def _store(self, read: Read, words: np.ndarray) -> None:
        uid = read.part.uid
        require(uid in self._mine.endpoint.filling, "written late", f"the blocks of request {uid}")
        require(uid in self._mine.endpoint.pulls, "written late", f"the blocks of request {uid}, which are free")
        places = self._mine.device.places_in(read.part.targets)
        self._mine.device.store(places[read.num_stored :][: len(words)], words)
        read.num_stored += len(words)
        self.counts["places read"] += len(words)
        if self.open is not None and self.open.is_closing:
            self.counts["places read late"] += len(words)
        read.is_over = read.num_stored == len(places)

    # -- P's thread ----------------------------------------------------------------------------------------------

    def listen(self, back: int, count: int) -> None:
        """One round of P's thread of a connection, the newest or an older one, which takes so many messages."""
        alive = [one for one in self.connections if one.borrower is not None]
        if not alive:
            return
        connection = alive[-1 - back % len(alive)]
        borrower, now = connection.borrower, self._clock()
        assert borrower is not None
        number = 0 if connection.is_silent else min(count, len(connection.to_p))
        was_woken, connection.is_woken = connection.is_woken, False
        if number:
            connection.heard = now
            self.counts["messages to P"] += number
        self.num_moves += number
        for _ in range(number):
            answers = borrower.take(connection.to_p.popleft())
            for answer in answers:
                if isinstance(answer, messages.Consumed):
                    self.counts["consume answered with yes" if answer.valid else "consume answered with no"] += 1
            connection.to_d.extend(answers)
        news = borrower.news()
        require(number > 0 or was_woken or not news, "not woken", f"P has news for D: {news}")
        connection.to_d.extend(news)
        self.num_moves += len(news)
        is_over = connection.d_left and not connection.to_p and not connection.is_silent
        if is_over or now - connection.heard >= 2 * connection.site.lease_seconds:
            self.num_moves += 1
            connection.p_leaves()

    # -- the end -------------------------------------------------------------------------------------------------

    def cut(self, how: int, lost: int) -> None:
        """The open connection breaks. how: one of CUTS."""
        connection = self.open
        if connection is None:
            return
        if how == 2:
            connection.is_silent = True
            return
        connection.lose(lost)
        if how == 1:
            connection.p_leaves()
        else:
            connection.is_closing = True

    def p_died(self, silent: bool, lost: int) -> None:
        """The process of P is gone."""
        for connection in self.connections:
            if not silent:
                connection.lose(lost)
            connection.is_silent |= silent
            connection.borrower = None

    def d_died(self, silent: bool, lost: int) -> None:
        """The process of D is gone, with its readers."""
        for connection in self.connections:
            if not silent:
                connection.lose(lost)
            connection.is_silent |= silent
            connection.d_left = True
            connection.reads.clear()
