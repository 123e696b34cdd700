"""Sends the effects of the engine to the API processes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import zmq

from headway.engine import interpreter
from headway.engine.engine import Engine
from headway.scheduler.effects import Effects
from headway.wire import codec, encrypted, to_client
from headway.wire.uids import client_of, effects_of_client
from headway.wire.wire_errors import WireErrors

STATUS_INTERVAL = 0.2  # seconds between two pulses
STATUS_DELAY = 0.02  # seconds from the end of a request to the next pulse
LINGER_MS = 2000  # milliseconds that the last messages get to leave

Socket = zmq.Socket[bytes]
Reply = to_client.Returned | to_client.Raised


class _Answer(NamedTuple):
    client: int
    message: to_client.ToClient


class _Come(NamedTuple):
    client: int
    socket: Socket


class _Gone(NamedTuple):
    client: int


class Output:
    """Sends to the API processes: effects (one message per turn of the writer), answers, and the pulse.

    The writer calls `put`, any thread the other methods; all only append to a queue. A thread of its own sends, over
    one socket for each client, so that a client gets everything in the order in which it was handed in here. What is
    for a client that is not attached is dropped.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Effects | Reply | _Answer | _Come | _Gone | None] = queue.SimpleQueue()
        self.put: Callable[[Effects], None] = self._queue.put
        self.reply: Callable[[Reply], None] = self._queue.put
        self._thread: threading.Thread | None = None
        self._tells_cache = False
        self._address: str | None = None  # where clients of other machines reach the engine
        self._sockets: dict[int, Socket] = {}  # by client; of the thread alone
        self._splits = False  # whether there ever was a client beside the first one

    def answer(self, client: int, message: to_client.ToClient) -> None:
        """Send a message to this client."""
        self._queue.put(_Answer(client, message))

    def attach(self, client: int, socket: Socket) -> None:
        """Send to this client too, from `Ready` on. socket: from `connect_output`; this object closes it."""
        self._queue.put(_Come(client, socket))

    def detach(self, client: int) -> None:
        """Send nothing more to this client, also of what is on its way."""
        self._queue.put(_Gone(client))

    def start(
        self, engine: Engine, errors: WireErrors, address: str | None = None, *, tells_cache: bool = False
    ) -> None:
        """Start the thread that sends. engine: its snapshot and its health make the pulse; errors, address: of the
        intake. tells_cache: see `Ready`."""
        self._tells_cache = tells_cache
        self._address = address
        self._thread = threading.Thread(target=self._run, args=(engine, errors), name="headway-output", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send what is queued, and end the thread."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self, engine: Engine, errors: WireErrors) -> None:
        next_pulse = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=max(0.0, next_pulse - time.monotonic()))
                if item is None:
                    break
                if isinstance(item, Effects):
                    self._send_effects(item)
                    if item.ended:  # counters that are read soon after an answer must count it
                        next_pulse = min(next_pulse, time.monotonic() + STATUS_DELAY)
                elif isinstance(item, _Come):
                    self._splits |= bool(self._sockets)
                    self._sockets[item.client] = item.socket
                    self._send(item.client, self._ready(engine, _pulse(engine, errors)))
                elif isinstance(item, _Gone):
                    self._forget(item.client)
                elif isinstance(item, _Answer):
                    self._send(item.client, item.message)
                else:
                    self._send(client_of(item.number), item)
            if time.monotonic() >= next_pulse:
                encoded = codec.encode(_pulse(engine, errors))
                for socket in self._sockets.values():  # the owner's first: all clients count on from what it knows
                    socket.send(encoded)
                next_pulse = time.monotonic() + STATUS_INTERVAL
        for socket in self._sockets.values():
            socket.close()

    def _ready(self, engine: Engine, pulse: to_client.Status) -> to_client.Ready:
        return to_client.Ready(engine.manager.config, engine.placement, self._address, self._tells_cache, pulse)

    def _forget(self, client: int) -> None:
        socket = self._sockets.pop(client, None)
        if socket is not None:
            socket.close(linger=0)

    def _send(self, client: int, message: to_client.ToClient) -> None:
        socket = self._sockets.get(client)
        if socket is not None:
            socket.send(codec.encode(message))

    def _send_effects(self, effects: Effects) -> None:
        if not self._splits:
            for socket in self._sockets.values():
                socket.send(codec.encode(to_client.Step.of(effects)))
            return
        for client, socket in self._sockets.items():
            if part := effects_of_client(effects, client):
                socket.send(codec.encode(to_client.Step.of(part)))


def connect_output(context: zmq.Context[Socket], address: str) -> Socket:
    """A new socket to the API process that listens there. Raises zmq.ZMQError for what is no address."""
    socket = context.socket(zmq.PUSH)
    socket.set_hwm(0)  # no limit here: the running requests are the limit, and a slow reader must not stop the thread
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    try:
        encrypted.connect(socket, address)
    except zmq.ZMQError:
        socket.close(linger=0)
        raise
    return socket


def _pulse(engine: Engine, errors: WireErrors) -> to_client.Status:
    snapshot = engine.manager.snapshot()
    if not snapshot.has_work:
        interpreter.tidy()
    return to_client.Status(
        snapshot,
        engine.is_stalled(),
        engine.failure(),
        errors.count,
        engine.transfer_counts(),
        engine.kv_event_counts(),
    )
