"""A process that takes an engine process's messages, as an API process does, and only counts them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Self

import zmq

from headway.wire import codec, to_client
from headway.wire.launch import output_address

_END = b""
_QUIET_MS = 1_000  # after the end: nothing more is on its way
_PATIENCE_S = 30.0


class Sink:
    """The process, from `with` on until its end. socket_dir: where it listens, as API process 0.

    steps: `Step` messages that came, once it has ended.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._folder = tempfile.TemporaryDirectory(prefix="headway-sink-")
        self.socket_dir = self._folder.name
        self.steps = 0

    def __enter__(self) -> Self:
        command = [sys.executable, "-P", "-c", f"from {__name__} import main; main({self.socket_dir!r})"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"the sink process ended with status {self._process.wait()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._context.socket(zmq.PUSH) as socket:
            socket.connect(output_address(self.socket_dir, 0))
            socket.send(_END)
        try:
            self.steps = int(self._process.communicate(timeout=_PATIENCE_S)[0])
        finally:
            self._process.kill()
            self._folder.cleanup()


def main(socket_dir: str) -> None:
    """The life of the process."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PULL)
    socket.set_hwm(0)
    socket.bind(output_address(socket_dir, 0))
    print("listening", flush=True)
    steps, ended = 0, False
    while not ended or socket.poll(_QUIET_MS):
        message = socket.recv()
        ended |= message == _END
        steps += message != _END and isinstance(codec.decode_to_client(message), to_client.Step)
    print(steps)
    context.destroy(linger=0)
