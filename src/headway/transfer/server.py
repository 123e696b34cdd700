"""P: the socket on which peers find what is lent, and a thread for each connection."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from headway.config import KVTransport
from headway.errors import EngineDeadError
from headway.transfer import handshake
from headway.transfer.channel import Channel
from headway.transfer.counts import SENDING_WAYS
from headway.transfer.handshake import RefusedError
from headway.transfer.lender import Lender
from headway.transfer.memory import KVMemory
from headway.transfer.messages import MessageError, Purpose
from headway.transfer.nixl import NixlError, serve_writes
from headway.transfer.tcp import serve_reads

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
MAX_LEASE_SECONDS = 86400.0  # heartbeats of D are never further apart than a third of this


class LenderServer:
    """Serves peers from when it is made until `close`.

    host, port: where to listen; port 0: any. Without a secret only a loopback address is taken.
    transport: `tcp` alone: no peer may map the memory; `nixl`: it is also written to peers by NIXL.
    lease_seconds: the length of a lease; a peer that says nothing for twice as long is cut off.

    num_refused, num_bad_messages: handshakes, and messages that could not be taken. bytes_sent: of blocks, by
        the way that they went.
    Raises OSError if it cannot listen there, and ValueError for an address that needs a secret.
    """

    def __init__(
        self,
        lender: Lender,
        memory: KVMemory,
        *,
        lease_seconds: float,
        host: str = "127.0.0.1",
        port: int = 0,
        secret: bytes | None = None,
        transport: KVTransport = KVTransport.AUTO,
        max_connections: int = MAX_CONNECTIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        handshake.check_secret(secret)
        self._lender = lender
        self._memory = memory
        self._lease_seconds = min(lease_seconds, MAX_LEASE_SECONDS)
        self._secret = secret
        self._handle = None if transport is KVTransport.TCP else memory.handle()
        self._has_nixl = transport is KVTransport.NIXL
        self._max_connections = max_connections
        self._clock = clock
        self._closing = self._is_full = False
        self._channels: dict[Channel, threading.Thread] = {}
        self.num_refused = self.num_bad_messages = 0
        self.bytes_sent = dict.fromkeys(SENDING_WAYS, 0)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="headway-kv-lender", daemon=True)
        self._thread.start()

    @property
    def num_connections(self) -> int:
        """Connections of peers that are open."""
        return len(self._channels)

    def cut(self) -> None:
        """Cut all peers off. They may come back."""
        for channel in list(self._channels):
            channel.interrupt()

    def close(self) -> None:
        """Cut all peers off, and wait for the threads. Idempotent."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._thread.join()
        self._socket.close()
        for channel, thread in list(self._channels.items()):
            channel.interrupt()
            thread.join()

    def _accept(self) -> None:
        while not self._closing:
            try:
                sock, _ = self._socket.accept()
                self._begin(sock)
            except (OSError, RuntimeError) as error:
                if not self._closing:  # no file descriptor or no thread is left, or the like
                    logger.warning("no connection of a KV peer can be taken: %s", error)
                    time.sleep(0.1)

    def _begin(self, sock: socket.socket) -> None:
        """Serve a connection. Raises OSError or RuntimeError, and closes it, if it cannot have a thread."""
        if len(self._channels) >= self._max_connections:
            if not self._is_full:
                logger.warning("%d KV peers are connected; no more are taken", len(self._channels))
            self._is_full = True
            self.num_refused += 1
            sock.close()
            return
        self._is_full = False
        try:
            channel = Channel(sock, clock=self._clock)
        except OSError:
            sock.close()
            raise
        thread = threading.Thread(target=self._serve, args=(channel,), name="headway-kv-lend", daemon=True)
        self._channels[channel] = thread
        try:
            thread.start()
        except RuntimeError:
            del self._channels[channel]
            channel.close()
            raise

    def _serve(self, channel: Channel) -> None:
        address = channel.address
        try:
            purpose, theirs = handshake.receive(
                channel,
                self._memory.layout,
                self._secret,
                engine=self._lender.seal.engine,
                lease_seconds=self._lease_seconds,
                memory=self._handle,
                has_nixl=self._has_nixl,
            )
            match purpose:
                case Purpose.REQUESTS:
                    self._serve_borrower(channel)
                case Purpose.TCP:
                    on_sent = partial(self._count_sent, KVTransport.TCP)
                    serve_reads(channel, self._memory, self._lender.readable, on_sent)
                case Purpose.NIXL:
                    on_sent = partial(self._count_sent, KVTransport.NIXL)
                    serve_writes(channel, self._memory, theirs, self._lender.readable, on_sent)
        except RefusedError as error:
            self.num_refused += 1
            logger.warning("the KV peer %s was refused: %s", address, error)
        except MessageError as error:
            self.num_bad_messages += 1
            logger.warning("the KV peer %s was cut off: %s", address, error)
        except NixlError as error:
            logger.warning("the KV peer %s was cut off: %s", address, error)
        except (OSError, EngineDeadError) as error:
            logger.debug("the KV peer %s has left: %s", address, error)
        finally:
            channel.close()
            del self._channels[channel]

    def _serve_borrower(self, channel: Channel) -> None:
        borrower = self._lender.borrower(channel.wake, channel.address)
        patience = 2 * self._lease_seconds
        heard = self._clock()
        try:
            while self._clock() - heard < patience:
                messages = channel.wait(patience)
                if messages:
                    heard = self._clock()
                for message in messages:
                    for answer in borrower.take(message):
                        channel.send(answer)
                for news in borrower.news():
                    channel.send(news)
            raise TimeoutError(f"{channel.address} has said nothing for {patience:g} s")
        finally:
            self._lender.leave(borrower)

    def _count_sent(self, way: KVTransport, num_bytes: int) -> None:
        self.bytes_sent[way] += num_bytes  # several threads: a metric that may miss a little
