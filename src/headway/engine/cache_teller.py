"""Tells API processes which blocks the prefix cache holds, so that a router can send a prompt where it is known."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from headway.block_digests import Digest
from headway.engine.findable_blocks import AllRemoved, BlocksStored, Change, FindableBlocks
from headway.kvcache import KVEvent
from headway.wire.to_client import CacheNews

logger = logging.getLogger(__name__)

MOST_TURNS = 100_000  # of the writer, that wait for this thread

Tell = Callable[[int, CacheNews], None]
"""Sends news to a client. Never waits."""


class _Turn(NamedTuple):
    num_lost: int
    events: list[KVEvent]


class _Asks(NamedTuple):
    client: int


class _Leaves(NamedTuple):
    client: int


class CacheTeller:
    """Takes the events of the writer's turns, and tells the clients that have asked what has changed, on a thread of
    its own: digests cost time. A client that asks is told everything first.

    num_lost: turns that were dropped because too many were waiting; then all clients hear that no block is held.
    """

    def __init__(self, block_size: int, tell: Tell) -> None:
        self._blocks = FindableBlocks(block_size)
        self._tell = tell
        self._queue: queue.SimpleQueue[_Turn | _Asks | _Leaves | None] = queue.SimpleQueue()
        self._clients: set[int] = set()
        self._number = 0
        self.num_lost = 0
        self._num_lost_seen = 0
        self._thread = threading.Thread(target=self._run, name="headway-cache-teller", daemon=True)

    def publish(self, events: list[KVEvent]) -> None:
        """Take the events of one turn. One thread only; never waits."""
        if self._queue.qsize() >= MOST_TURNS:
            self.num_lost += 1
        else:
            self._queue.put(_Turn(self.num_lost, events))

    def ask(self, client: int) -> None:
        """This client wants to know everything, and from then on what changes. Any thread."""
        self._queue.put(_Asks(client))

    def leave(self, client: int) -> None:
        """Tell this client nothing more. Any thread."""
        self._queue.put(_Leaves(client))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, if it has started, and wait for it."""
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, _Asks):
                self._clients.add(item.client)
                self._tell(item.client, _news(self._number, self._blocks.found(), (), anew=True))
            elif isinstance(item, _Leaves):
                self._clients.discard(item.client)
            else:
                self._follow(item)

    def _follow(self, turn: _Turn) -> None:
        changes: list[Change] = []
        if turn.num_lost != self._num_lost_seen:
            logger.warning("%d turns of KV events were lost", turn.num_lost - self._num_lost_seen)
            self._num_lost_seen = turn.num_lost
            changes.append(self._blocks.forget())
        changes += self._blocks.apply(turn.events)
        if changes:
            self._number += 1
            news = _sum(self._number, changes)
            for client in self._clients:
                self._tell(client, news)


def _sum(number: int, changes: Iterable[Change]) -> CacheNews:
    """What these changes, in order, come to."""
    held: dict[Digest, bool] = {}
    anew = False
    for change in changes:
        if isinstance(change, AllRemoved):
            held, anew = {}, True
        else:
            held.update(dict.fromkeys(change.digests, isinstance(change, BlocksStored)))
    stored = [digest for digest, is_held in held.items() if is_held]
    removed = [digest for digest, is_held in held.items() if not is_held]
    return _news(number, stored, removed, anew=anew)


def _news(number: int, stored: Iterable[Digest], removed: Iterable[Digest], *, anew: bool) -> CacheNews:
    return CacheNews(number, anew, b"".join(stored), b"".join(removed))
