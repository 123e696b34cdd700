"""Frames on a socket: four bytes of length, little endian, and a message."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence

from headway.transfer.messages import AnyMessage, MessageError, decode, encode

MAX_FRAME_BYTES = 2**20
_HEADER = struct.Struct("<I")
_SEND_SECONDS = 10.0  # for one message; a peer that takes none for so long is gone
_MOST_BUFFERS = 512  # of one system call; the limit of Linux is 1024


class ChannelClosedError(OSError):
    """The peer has closed the connection, or this side has."""


class Channel:
    """A connection to a peer. One thread uses it; any thread may `wake` or `interrupt` it.

    It owns the socket. address: the peer's, for a text.
    """

    def __init__(self, sock: socket.socket, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._sock = sock
        self._clock = clock
        self._frame = bytearray()
        self._wanted = _HEADER.size
        self._in_header = True
        self._failed: OSError | MessageError | None = None
        self.address = _address(sock)
        self._heard, self._waker = socket.socketpair()
        for end in (self._heard, self._waker):
            end.setblocking(False)
        sock.settimeout(_SEND_SECONDS)
        with contextlib.suppress(OSError):  # a Unix socket has none of them
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    @property
    def peer_host(self) -> str:
        """The numeric address of the peer. Raises OSError once the connection is closed."""
        return str(self._sock.getpeername()[0])

    # -- messages ------------------------------------------------------------------------------------------------

    def send(self, message: AnyMessage) -> None:
        """Raises OSError if the peer takes nothing, and MessageError for a message that is too long."""
        data = encode(message)
        if len(data) > MAX_FRAME_BYTES:
            raise MessageError(f"a message has at most {MAX_FRAME_BYTES} bytes, got {len(data)}")
        self._sock.sendall(_HEADER.pack(len(data)) + data)

    def receive(self, timeout: float | None) -> AnyMessage:
        """The next message. Raises TimeoutError after `timeout` seconds, MessageError for anything but a message, and
        OSError if the connection ends."""
        until = None if timeout is None else self._clock() + timeout
        while True:
            left = None if until is None else until - self._clock()
            if left is not None and left <= 0:
                raise TimeoutError(f"{self.address} has sent no whole message within {timeout:g} s")
            if (message := self._take(left)) is not None:
                return message

    def wait(self, timeout: float) -> list[AnyMessage]:
        """The messages that are there; waits for the first one, for `wake`, or for `timeout` seconds. Raises as
        `receive`, but no TimeoutError."""
        if self._failed is not None:
            raise self._failed
        messages: list[AnyMessage] = []
        while len(messages) < 256:
            try:
                message = self._take(timeout)
            except (OSError, MessageError) as error:
                if not messages:
                    raise
                self._failed = error  # what came before counts
                break
            if message is not None:
                messages.append(message)
            elif not self.is_readable(0.0):
                break
            timeout = 0.0
        return messages

    def is_readable(self, timeout: float | None) -> bool:
        """Whether bytes of the peer, or its end, are there. Waits for them, for `wake`, or for `timeout` seconds."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._heard, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(None if timeout is None else max(0.0, timeout) * 1e3)}
        if self._heard.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._heard.recv(4096)
        return self._sock.fileno() in ready

    def wake(self) -> None:
        """Let `wait` return. Any thread."""
        with contextlib.suppress(OSError):  # full: it is awake; or closed
            self._waker.send(b"w")

    def interrupt(self) -> None:
        """Whatever waits for the peer fails from now on. Any thread."""
        with contextlib.suppress(OSError):  # not connected any more
            self._sock.shutdown(socket.SHUT_RDWR)
        self.wake()

    def close(self) -> None:
        """Idempotent."""
        for one in (self._sock, self._heard, self._waker):
            one.close()

    # -- bytes between messages ----------------------------------------------------------------------------------

    def wait_long(self) -> None:
        """From now on a transfer of bytes may take as long as the peer takes. Who wants an end calls `interrupt`."""
        self._sock.settimeout(None)

    def send_bytes(self, buffers: Sequence[memoryview]) -> None:
        """All of these, without a copy. Raises OSError if the connection ends."""
        self._move(buffers, self._sock.sendmsg)

    def receive_bytes(self, buffers: Sequence[memoryview]) -> None:
        """Fill all of these. Raises OSError if the connection ends."""

        def receive(views: Sequence[memoryview]) -> int:
            return self._sock.recvmsg_into(views, 0, socket.MSG_WAITALL)[0]

        self._move(buffers, receive)

    def _move(self, buffers: Sequence[memoryview], move: Callable[[Sequence[memoryview]], int]) -> None:
        for start in range(0, len(buffers), _MOST_BUFFERS):
            views = list(buffers[start : start + _MOST_BUFFERS])
            while views:
                done = move(views)
                if not done:
                    raise ChannelClosedError(f"{self.address} has closed the connection")
                while views and done >= len(views[0]):
                    done -= len(views.pop(0))
                if done:
                    views[0] = views[0][done:]

    # -- frames --------------------------------------------------------------------------------------------------

    def _take(self, timeout: float | None) -> AnyMessage | None:
        """Read on; the message, if it is whole now. None also after `wake` or `timeout` seconds."""
        if not self.is_readable(timeout):
            return None
        # Not a byte more than the frame has: bytes that belong to no message may follow.
        part = self._sock.recv(self._wanted - len(self._frame))
        if not part:
            raise ChannelClosedError(f"{self.address} has closed the connection")
        self._frame += part
        if len(self._frame) < self._wanted:
            return None
        frame, self._frame = self._frame, bytearray()
        if self._in_header:
            (self._wanted,) = _HEADER.unpack(frame)
            if not 0 < self._wanted <= MAX_FRAME_BYTES:
                raise MessageError(f"a frame has from 1 to {MAX_FRAME_BYTES} bytes, got {self._wanted}")
            self._in_header = False
            return None
        self._wanted, self._in_header = _HEADER.size, True
        return decode(frame)


def _address(sock: socket.socket) -> str:
    try:
        name = sock.getpeername()
    except OSError:
        return "a peer that has left"
    return ":".join(map(str, name[:2])) if isinstance(name, tuple) else "a local peer"
