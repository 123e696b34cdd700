"""A process that receives the messages of an engine process, like an API process, and only counts the steps in them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import zmq

from headway.bench.answering import answer_questions
from headway.bench.child_process import AnsweringProcess
from headway.wire import codec, to_client
from headway.wire.launch import output_address

_QUIET_MS = 1_000  # after the end: nothing more is on its way
_PATIENCE_MS = 60_000  # for messages that are known to be on their way


class Sink(AnsweringProcess):
    """The process, for the time of a `with` block. socket_dir: where it listens, as API process 0.

    least: the least number of steps; the process waits for their tokens at the end.
    steps: the number of steps whose tokens came, of which one message may carry several; known after the end.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._socket_folder = tempfile.TemporaryDirectory(prefix="headway-sink-")
        self.socket_dir = self._socket_folder.name
        self.least = self.steps = 0
        super().__init__([sys.executable, "-P", "-m", "headway_lab.rigs.sink", self.socket_dir])

    def __enter__(self) -> Self:
        super().__enter__()
        self.send("how many?")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._context.socket(zmq.PUSH) as socket:
                    socket.connect(output_address(self.socket_dir, 0))
                    socket.send_multipart([b"the end; steps at least", str(self.least).encode()])
                self.steps = self.receive()
        finally:
            super().__exit__(kind, error, trace)
            self._socket_folder.cleanup()


def begin(socket_dir: str) -> tuple[str, Callable[[Any], int]]:
    """Listen; returns a greeting, and the function that counts until the end."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PULL)
    socket.set_hwm(0)
    socket.bind(output_address(socket_dir, 0))

    def count(question: Any) -> int:
        steps = 0
        least: int | None = None  # known at the end
        while least is None or socket.poll(_QUIET_MS if steps >= least else _PATIENCE_MS):
            message, *more = socket.recv_multipart()
            if more:
                least = int(more[0])
            else:
                received = codec.decode_to_client(message)
                steps += len(received.tokens) if isinstance(received, to_client.Step) else 0
        return steps

    return "listening", count


if __name__ == "__main__":
    answer_questions(lambda: begin(sys.argv[1]))
