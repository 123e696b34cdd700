"""Ports that a group keeps for its servers, so that no other program takes one while a server starts again."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from headway.server.serve import bind


class HeldPorts:
    """Holds ports for the time of a `with` block. Servers that start within it can listen there."""

    def __init__(self) -> None:
        self._sockets = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sockets.close()

    def take(self, host: str, port: int = 0) -> int:
        """Hold a port; 0: any free one. Returns its number. Raises OSError, naming it, if another program has it."""
        try:
            held: socket.socket = bind(host, port)
        except OSError as error:
            raise OSError(f"cannot serve at {host}:{port}: {error.strerror or error}") from None
        number: int = held.getsockname()[1]
        if sys.platform == "linux":  # a second socket may be bound there, and the first one does not listen
            self._sockets.enter_context(held)
        else:
            held.close()
        return number
