"""D: the thread of one peer, and the threads that read from it."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from headway.config import KVTransport
from headway.error_text import first_line
from headway.transfer import handshake
from headway.transfer.channel import Channel, ChannelClosedError
from headway.transfer.counts import WAYS, PeerState
from headway.transfer.handshake import RefusedError
from headway.transfer.memory import KVMemory
from headway.transfer.messages import MessageError, Purpose, Ready
from headway.transfer.nixl import NixlReader
from headway.transfer.reader import Reader, ReadError, Slice
from headway.transfer.receiver import Done, PeerSilentError, Receiver
from headway.transfer.shared_memory import SharedMemoryReader
from headway.transfer.tcp import TcpReader, connect

logger = logging.getLogger(__name__)

_FIRST_BACKOFF, _MOST_BACKOFF = 0.1, 5.0  # seconds between attempts to connect
_SLICES_PER_READER = 2  # the slice that it reads, and the next

Command = Callable[[Receiver], None]


@dataclass(frozen=True, slots=True)
class PeerSetting:
    """What all peers of an engine have in common.

    num_token_ids: see `Receiver`. num_streams: connections that read at once, where memory is not shared.
    transport: how blocks are read; `auto`: memory of peers on this host is mapped, others are read over TCP.
    """

    memory: KVMemory
    num_token_ids: int
    secret: bytes | None
    clock: Callable[[], float]
    num_streams: int = 4
    transport: KVTransport = KVTransport.AUTO


class Peer:
    """One P, seen from D. It connects when something is wanted of it, and again by itself after it was lost.

    done: see `Receiver`; called on the peer's thread.
    """

    def __init__(self, host: str, port: int, setting: PeerSetting, done: Done) -> None:
        self.host, self.port = host, port
        self.receiver = Receiver(setting.memory.layout, setting.num_token_ids, done)
        self.bytes_by_transport = dict.fromkeys(WAYS, 0)
        self.seconds_by_transport = dict.fromkeys(WAYS, 0.0)  # in which something was being read
        self.num_bad_messages = 0
        self.state = PeerState.IDLE
        self.problem: str | None = None  # why it is not connected; None while it is, and before the first attempt
        self.transport: KVTransport | None = None  # how blocks are read; None while it is not connected
        self._setting = setting
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._channel: Channel | None = None
        self._closing = False
        self._backoff = 0.0
        self._reads_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"headway-kv-{host}:{port}", daemon=True)
        self._thread.start()

    @property
    def bytes_read(self) -> int:
        """Over all transports."""
        return sum(self.bytes_by_transport.values())

    def post(self, command: Command) -> None:
        """Run this on the peer's thread. Any thread; never waits."""
        self._commands.put(command)
        channel = self._channel
        if channel is not None:
            channel.wake()

    def wake(self) -> None:
        """Look at the clock again."""
        self.post(lambda _: None)

    def close(self) -> None:
        """Stop all readers, and end all jobs. Returns when that is done."""
        self._closing = True
        self.wake()
        self._thread.join()

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            self._wait_for_work()
            if self._closing:
                break
            try:
                self._visit()
            except MessageError as error:
                self.num_bad_messages += 1
                self._lost(error)
            except (OSError, RefusedError) as error:
                self._lost(error)
        self._run_commands()
        self.receiver.lost("this engine stops")

    def _lost(self, error: Exception) -> None:
        if self.problem is None and not self._closing:
            logger.warning("the KV peer %s:%d is out: %s", self.host, self.port, error)
        self.problem, self.state = first_line(error), _state_after(error)
        self._backoff = min(max(2 * self._backoff, _FIRST_BACKOFF), _MOST_BACKOFF)
        self.receiver.lost(f"the peer {self.host}:{self.port} is out: {self.problem}")

    def _wait_for_work(self) -> None:
        """Until a connection is to be tried: at once for blocks that wait, else after a while."""
        until = self._setting.clock() + self._backoff
        while not self._closing:
            left = until - self._setting.clock()
            if self.receiver.is_urgent or (left <= 0 and (self._backoff or self.receiver.is_wanted)):
                break
            with contextlib.suppress(queue.Empty):
                self._commands.get(timeout=max(0.0, left) if self._backoff else None)(self.receiver)

    def _run_commands(self) -> None:
        while not self._commands.empty():
            self._commands.get()(self.receiver)

    def _visit(self) -> None:
        """Connect, and serve until the connection is lost. Raises what ended it, when no reader writes any more."""
        setting = self._setting
        channel = connect(self.host, self.port)
        readers: list[_ReaderThread] = []
        desk = _Desk(channel)
        try:
            ready = handshake.greet(channel, setting.memory.layout, setting.secret, purpose=Purpose.REQUESTS)
            for reader in self._readers(ready):
                readers.append(_ReaderThread(reader, desk))
            self._channel = channel
            self.problem, self.state, self._backoff = None, PeerState.CONNECTED, 0.0
            self.receiver.connected(ready.engine, ready.layout.num_blocks, ready.lease_seconds, setting.clock())
            self._serve(channel, desk, _SLICES_PER_READER * len(readers))
        finally:
            self._note_reading(False)
            self._channel = self.transport = None
            for thread in readers:
                thread.reader.interrupt()
                desk.slices.put(None)
            for thread in readers:  # without a limit: as long as one of them could write, no block may come back
                thread.join()
                thread.reader.close()
            channel.close()

    def _readers(self, ready: Ready) -> list[Reader]:
        setting = self._setting
        if setting.transport is KVTransport.NIXL:
            self.transport = KVTransport.NIXL
            return [NixlReader(self.host, self.port, setting.memory, setting.secret)]
        if setting.transport is not KVTransport.TCP:
            try:
                if ready.memory is None:
                    raise FileNotFoundError("it shares none")
                shared = SharedMemoryReader(ready.memory, ready.layout, setting.memory)
            except OSError as error:  # another host, another user, another container
                if setting.transport is KVTransport.SHARED_MEMORY:
                    raise OSError(f"its memory cannot be mapped (--kv-transport shared-memory): {error}") from error
                logger.info("the memory of the KV peer %s:%d is not shared: %s", self.host, self.port, error)
            else:
                self.transport = KVTransport.SHARED_MEMORY
                return [shared]
        self.transport = KVTransport.TCP
        readers: list[Reader] = []
        try:
            for _ in range(setting.num_streams):
                readers.append(TcpReader(self.host, self.port, setting.memory, setting.secret))
        except BaseException:
            for reader in readers:
                reader.close()
            raise
        return readers

    def _serve(self, channel: Channel, desk: _Desk, most_reading: int) -> None:
        receiver, clock = self.receiver, self._setting.clock
        while not self._closing:
            self._run_commands()
            while not desk.done.empty():
                part, error = desk.done.get()
                self._read_done(part, error)
            receiver.tick(clock())
            while receiver.num_reading < most_reading and (part_to_read := receiver.next_slice()) is not None:
                desk.slices.put(part_to_read)
            self._note_reading(receiver.num_reading > 0)
            outbox = receiver.outbox[:]
            receiver.outbox.clear()
            for message in outbox:
                channel.send(message)
            is_busy = not (self._commands.empty() and desk.done.empty())
            for answer in channel.wait(0.0 if is_busy else receiver.seconds_left(clock())):
                receiver.take(answer)
        raise ChannelClosedError("this engine stops")

    def _read_done(self, part: Slice, error: Exception | None) -> None:
        if error is None:
            assert self.transport is not None, "a reader reads while the peer is connected"
            self.bytes_by_transport[self.transport] += len(part.targets) * self._setting.memory.layout.block_bytes
            self.receiver.read_done(part, None)
        elif isinstance(error, ReadError):
            self.receiver.read_done(part, first_line(error))
        else:  # this reader is of no use any more
            raise ChannelClosedError(f"a reader has failed: {first_line(error)}") from error

    def _note_reading(self, reads: bool) -> None:
        """Readers have something to read from now on, or nothing."""
        now = self._setting.clock()
        if self._reads_since is not None and self.transport is not None:
            self.seconds_by_transport[self.transport] += now - self._reads_since
        self._reads_since = now if reads else None


def _state_after(error: Exception) -> PeerState:
    match error:
        case MessageError():
            return PeerState.BAD_MESSAGE
        case RefusedError():
            return PeerState.REFUSED
        case PeerSilentError():
            return PeerState.SILENT
    return PeerState.UNREACHABLE


class _Desk:
    """Between the thread of a peer and its readers, as long as one connection lasts. slices: None ends a reader.
    done: with the error of each slice that a reader has taken."""

    def __init__(self, channel: Channel) -> None:
        self.slices: queue.SimpleQueue[Slice | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[Slice, Exception | None]] = queue.SimpleQueue()
        self._channel = channel

    def report(self, part: Slice, error: Exception | None) -> None:
        """A reader writes no more for this slice."""
        self.done.put((part, error))
        self._channel.wake()


class _ReaderThread(threading.Thread):
    """Reads slices until None comes, or until its reader is of no use any more."""

    def __init__(self, reader: Reader, desk: _Desk) -> None:
        super().__init__(name="headway-kv-read", daemon=True)
        self.reader = reader
        self._desk = desk
        self.start()

    def run(self) -> None:
        while (part := self._desk.slices.get()) is not None:
            try:
                self.reader.read(part)
            except ReadError as error:
                self._desk.report(part, error)
            except (OSError, ValueError) as error:
                self._desk.report(part, error)
                return
            else:
                self._desk.report(part, None)
