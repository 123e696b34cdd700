"""A network between D and P that holds bytes back, or is cut."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Passes connections on to a port. The first connection of a D is for messages, the others are for blocks.

    holds_messages, holds_blocks: whether bytes from P wait here. cut: end all connections, and take no more until
    `mend`.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._condition = threading.Condition()
        self.holds_messages = self.holds_blocks = False
        self.num_held = 0  # parts from P that wait
        self._cut = False
        self._sockets: list[socket.socket] = []
        self._num_connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, *, messages: bool = False, blocks: bool = False) -> None:
        """Hold back what comes from P."""
        with self._condition:
            self.holds_messages, self.holds_blocks = messages, blocks
            self._condition.notify_all()

    def cut(self) -> None:
        """Bytes that are held are lost."""
        with self._condition:
            self._cut, sockets, self._sockets, self._num_connections = True, self._sockets, [], 0
        for one in sockets:
            _end(one)

    def mend(self) -> None:
        """Take connections again."""
        self._cut = False

    def close(self) -> None:
        """End everything."""
        self.cut()
        self.hold()
        _end(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            with self._condition:
                is_first, self._num_connections = self._num_connections == 0, self._num_connections + 1
                self._sockets += [near, far]
            threading.Thread(target=self._pass_on, args=(near, far, None), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(far, near, is_first), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_first: bool | None) -> None:
        """is_first: None for bytes from D."""
        try:
            while data := source.recv(65536):
                with self._condition:
                    self.num_held += 1
                    self._condition.wait_for(lambda: not self._holds(is_first))
                    self.num_held -= 1
                target.sendall(data)
        except OSError:
            pass
        _end(target)

    def _holds(self, is_first: bool | None) -> bool:
        if is_first is None:
            return False
        return self.holds_messages if is_first else self.holds_blocks


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
