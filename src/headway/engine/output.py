"""Sends the effects of the engine to the API processes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence

import zmq

from headway.engine import interpreter
from headway.engine.engine import Engine
from headway.scheduler.effects import Effects
from headway.wire import codec, to_client
from headway.wire.launch import Launch, output_address
from headway.wire.uids import client_of, effects_of_client
from headway.wire.wire_errors import WireErrors

STATUS_INTERVAL = 0.2  # seconds between two pulses
STATUS_DELAY = 0.02  # seconds from the end of a request to the next pulse
LINGER_MS = 2000  # milliseconds that the last messages get to leave


class Output:
    """Sends to the API processes: effects (one message per turn of the writer), answers to calls, and the pulse.

    The writer calls `put`, any thread calls `reply`; both only append to a queue. A thread of its own sends.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], launch: Launch) -> None:
        self._context = context
        self._launch = launch
        self._queue: queue.SimpleQueue[Effects | to_client.Returned | to_client.Raised | None] = queue.SimpleQueue()
        self.put: Callable[[Effects], None] = self._queue.put
        self.reply: Callable[[to_client.Returned | to_client.Raised], None] = self._queue.put
        self._thread: threading.Thread | None = None

    def start(self, engine: Engine, errors: WireErrors) -> None:
        """Start the thread that sends. engine: its snapshot and its health make the pulse; errors: of the intake."""
        self._thread = threading.Thread(target=self._run, args=(engine, errors), name="headway-output", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send what is queued, and end the thread."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self, engine: Engine, errors: WireErrors) -> None:
        num_clients = self._launch.num_clients
        sockets = [connect_output(self._context, self._launch, client) for client in range(num_clients)]
        next_pulse = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=max(0.0, next_pulse - time.monotonic()))
                if item is None:
                    break
                if not isinstance(item, Effects):
                    sockets[client_of(item.number)].send(codec.encode(item))
                else:
                    self._send(sockets, item)
                    if item.ended:  # counters that are read soon after an answer must count it
                        next_pulse = min(next_pulse, time.monotonic() + STATUS_DELAY)
            if time.monotonic() >= next_pulse:
                snapshot = engine.manager.snapshot()
                if not snapshot.has_work:
                    interpreter.tidy()
                transfers = engine.transfer_counts()
                status = to_client.Status(
                    snapshot, engine.is_stalled(), engine.failure(), errors.count, transfers, engine.kv_event_counts()
                )
                pulse = codec.encode(status)
                for socket in sockets:
                    socket.send(pulse)
                next_pulse = time.monotonic() + STATUS_INTERVAL
        for socket in sockets:
            socket.close()

    @staticmethod
    def _send(sockets: Sequence[zmq.Socket[bytes]], effects: Effects) -> None:
        if len(sockets) == 1:
            sockets[0].send(codec.encode(to_client.Step.of(effects)))
            return
        for client, socket in enumerate(sockets):
            if part := effects_of_client(effects, client):
                socket.send(codec.encode(to_client.Step.of(part)))


def connect_output(context: zmq.Context[zmq.Socket[bytes]], launch: Launch, client: int) -> zmq.Socket[bytes]:
    """A new socket to API process `client`, for the calling thread alone."""
    socket = context.socket(zmq.PUSH)
    socket.set_hwm(0)  # no limit here: the running requests are the limit, and a slow reader must not stop the thread
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.connect(output_address(launch.socket_dir, client))
    return socket
