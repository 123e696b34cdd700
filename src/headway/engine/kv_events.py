"""Publishes KV events over ZeroMQ, in the form that routers know from vLLM. See docs/kv-events.md."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import zmq

from headway.block_digests import Digest
from headway.engine.findable_blocks import BlocksRemoved, BlocksStored, Change, FindableBlocks
from headway.kv_events_config import KVEventsConfig
from headway.kvcache import KVEvent
from headway.wire.to_client import KVEventCounts

logger = logging.getLogger(__name__)

END = (2**64 - 1).to_bytes(8, "big")  # where a sequence number would be: no further batch is repeated
MEDIUM = "GPU"  # the memory that the engine computes with, on whatever device
DATA_PARALLEL_RANK = 0
LINGER_MS = 500  # milliseconds that the last batches get to leave


class KVEventPublisher:
    """Takes the events of the writer's turns, and publishes each turn's changes as one batch, on a thread of its own.

    A batch is `[topic, sequence number, payload]`; sequence numbers begin at 0 and have no gap unless events were lost
    here. The first batch says that no block is held. A second thread answers `[sequence number]` with the batches from
    there on, as far as they are kept, and an end.

    num_published, num_lost: batches; for any thread to read.

    Raises ValueError, naming the endpoint, if a socket cannot be opened.
    """

    def __init__(self, config: KVEventsConfig, block_size: int) -> None:
        self._config = config
        self._blocks = FindableBlocks(block_size)
        self._batches = _Encoder(config, block_size)
        self._queue: queue.SimpleQueue[tuple[int, list[KVEvent]] | None] = queue.SimpleQueue()
        self._topic = config.topic.encode()
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self._keeping = threading.Lock()
        self.num_published = 0
        self.num_lost = 0
        self._next_number = 0
        self._num_lost_seen = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._threads = [threading.Thread(target=self._publish, name="headway-kv-events", daemon=True)]
        try:
            self._pub = self._open(zmq.PUB, config.endpoint, config.hwm, binds=_is_bound(config.endpoint))
            self._replay = self._ending = None
            if config.replay_endpoint is not None:
                # A subscriber that does not read what it asked for keeps its own batches waiting, and no more.
                self._replay = self._open(zmq.ROUTER, config.replay_endpoint, config.buffer_steps + 1, binds=True)
                self._replay.setsockopt(zmq.ROUTER_MANDATORY, 1)
                self._ending = self._open(zmq.PULL, "inproc://ending", 1, binds=True)
                self._threads.append(threading.Thread(target=self._repeat, name="headway-kv-replay", daemon=True))
        except ValueError:
            self._context.destroy(linger=0)
            raise

    def publish(self, events: list[KVEvent]) -> None:
        """Take the events of one turn. One thread only; never waits. If too many turns are waiting, the events are
        lost: the sequence numbers show a gap, and the next batch says that no block is held."""
        if self._queue.qsize() >= self._config.max_queue_size:
            if self.num_lost == self._num_lost_seen:
                logger.warning("KV events are lost: %d turns wait for the publisher", self._config.max_queue_size)
            self.num_lost += 1
        else:
            self._queue.put((self.num_lost, events))

    def counts(self) -> KVEventCounts:
        """Batches so far. Any thread."""
        return KVEventCounts(self.num_published, self.num_lost)

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Publish what is waiting, and stop. Idempotent. After `start` it returns when the threads have ended."""
        self._queue.put(None)
        if self._threads[0].ident is not None:
            self._threads[0].join()
        if self._ending is not None and self._threads[1].is_alive():
            self._open(zmq.PUSH, "inproc://ending", 1, binds=False).send(b"")
            self._threads[1].join()
        self._context.destroy(linger=LINGER_MS)

    def _open(self, kind: int, endpoint: str, hwm: int, *, binds: bool) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.set_hwm(hwm)
        try:
            if binds:
                socket.bind(endpoint)
            else:
                socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise ValueError(f"KV events cannot be published at {endpoint!r}: {error.strerror}") from None
        return socket

    # -- the thread that publishes -------------------------------------------------------------------------------

    def _publish(self) -> None:
        self._send([self._blocks.forget()])
        while (turn := self._queue.get()) is not None:
            num_lost, events = turn
            changes: list[Change] = []
            if num_lost != self._num_lost_seen:
                self._next_number += num_lost - self._num_lost_seen
                self._num_lost_seen = num_lost
                changes.append(self._blocks.forget())
            changes += self._blocks.apply(events)
            if changes:
                self._send(changes)

    def _send(self, changes: list[Change]) -> None:
        number, payload = self._next_number, self._batches.encode(changes)
        with self._keeping:  # before it is sent: a subscriber that came too late for it will find it
            self._kept.append((number, payload))
        self._pub.send_multipart((self._topic, number.to_bytes(8, "big"), payload))
        self._next_number += 1
        self.num_published += 1

    # -- the thread that repeats ---------------------------------------------------------------------------------

    def _repeat(self) -> None:
        assert self._replay is not None and self._ending is not None
        poller = zmq.Poller()
        poller.register(self._replay, zmq.POLLIN)
        poller.register(self._ending, zmq.POLLIN)
        while self._ending not in dict(poller.poll()):
            frames = self._replay.recv_multipart()
            if len(frames) == 3 and not frames[1] and len(frames[2]) == 8:
                self._answer(self._replay, frames[0], int.from_bytes(frames[2], "big"))
            else:
                logger.warning("a replay request has %d frames; an empty frame and 8 bytes are taken", len(frames) - 1)

    def _answer(self, replay: zmq.Socket[bytes], asker: bytes, first: int) -> None:
        with self._keeping:
            kept = list(self._kept)
        try:
            for number, payload in kept:
                if number >= first:
                    frames = (asker, b"", self._topic, number.to_bytes(8, "big"), payload)
                    replay.send_multipart(frames, zmq.NOBLOCK)
            replay.send_multipart((asker, b"", b"", END, b""), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            logger.warning("a subscriber has left, or does not read the batches that it asked for: %s", error.strerror)


class _Encoder:
    """Batches as vLLM writes them: `[time, events, data parallel rank]`, in msgpack."""

    def __init__(self, config: KVEventsConfig, block_size: int) -> None:
        self._block_size = block_size
        self._as_maps = config.event_format == "map"
        self._as_ints = config.hash_format == "int"
        self._msgpack = msgspec.msgpack.Encoder()

    def encode(self, changes: Iterable[Change]) -> bytes:
        """One batch."""
        events: list[Any] = [self._event(change) for change in changes]
        if not self._as_maps:
            events = [list(event.values()) for event in events]
        return self._msgpack.encode([time.time(), events, DATA_PARALLEL_RANK])

    def _event(self, change: Change) -> dict[str, Any]:
        """The fields of an event in vLLM's order. The last ones may be left out."""
        if isinstance(change, BlocksStored):
            event = {
                "type": "BlockStored",
                "block_hashes": self._hashes(change.digests),
                "parent_block_hash": None if change.parent is None else self._hashes([change.parent])[0],
                "token_ids": np.frombuffer(change.tokens, np.int32).tolist(),
                "block_size": self._block_size,
                "lora_id": None,
                "medium": MEDIUM,
                "lora_name": None,
            }
            if any(change.extras):
                event["extra_keys"] = [[_as_text(one) for one in extra] or None for extra in change.extras]
            return event
        if isinstance(change, BlocksRemoved):
            return {"type": "BlockRemoved", "block_hashes": self._hashes(change.digests), "medium": MEDIUM}
        return {"type": "AllBlocksCleared"}

    def _hashes(self, digests: Iterable[Digest]) -> list[int] | list[Digest]:
        return [int.from_bytes(digest[-8:], "big") for digest in digests] if self._as_ints else list(digests)


def _as_text(extra: str | bytes) -> str:
    return extra if isinstance(extra, str) else extra.hex()


def _is_bound(endpoint: str) -> bool:
    return "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc:", "inproc:"))
