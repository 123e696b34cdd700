"""CacheTeller: what a client hears of the cache, and that it is enough to know it."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from headway import block_digests
from headway.client.cached_blocks import CachedBlocks
from headway.engine import cache_teller
from headway.engine.cache_teller import CacheTeller
from headway.kvcache import BlockPool, KVEvent, PrefixCache
from headway.wire.to_client import CacheNews
from tests.managers.driving import PATIENCE

SIZE = 4


class Turns:
    """A cache, whose events make the turns."""

    def __init__(self) -> None:
        self.pool = BlockPool(1000, SIZE)
        self.prefix = PrefixCache(self.pool, keeps_events=True)

    def store(self, *tokens: int, salt: str | None = None) -> list[KVEvent]:
        blocks = self.pool.take(len(tokens))
        self.prefix.publish(PrefixCache.root(salt), prompt(*tokens).tobytes(), blocks.tolist())
        self.pool.release(blocks)
        return self.prefix.take_events()

    def evict(self) -> list[KVEvent]:
        self.pool.release(self.pool.take(self.pool.num_available))
        return self.prefix.take_events()


def prompt(*tokens: int) -> np.ndarray:
    """A block for each of these tokens."""
    return np.repeat(np.array(tokens, np.int32), SIZE)


def digests(*tokens: int, salt: str | None = None) -> list[bytes]:
    return block_digests.of_prompt(prompt(*tokens), SIZE, PrefixCache.root(salt))


class Listener:
    """A client that follows a teller. lose: news that do not arrive."""

    def __init__(self, teller: CacheTeller, client: int = 7) -> None:
        self.inbox: queue.Queue[CacheNews] = queue.Queue()
        self.held: set[bytes] = set()
        self.blocks = CachedBlocks(lambda: teller.ask(client), self._learn, self._forget, most=1000)

    def _learn(self, digests: list[bytes]) -> None:
        self.held.update(digests)

    def _forget(self, digests: list[bytes] | None) -> None:
        self.held.difference_update(self.held.copy() if digests is None else digests)

    def hear(self, *, lose: bool = False) -> CacheNews:
        news = self.inbox.get(timeout=PATIENCE)
        if not lose:
            self.blocks.take(news)
        return news


@contextmanager
def telling() -> Iterator[tuple[CacheTeller, Listener]]:
    inboxes: dict[int, Listener] = {}
    teller = CacheTeller(SIZE, lambda client, news: inboxes[client].inbox.put(news))
    inboxes[7] = listener = Listener(teller)
    teller.start()
    try:
        yield teller, listener
    finally:
        teller.close()


def test_a_client_knows_what_the_cache_holds_by_the_digests_of_its_own_prompts() -> None:
    turns = Turns()
    with telling() as (teller, listener):
        assert listener.hear() == CacheNews(0, True, b"")
        teller.publish(turns.store(1, 2))
        teller.publish(turns.store(1, 2, 3))
        teller.publish(turns.store(1, salt="s"))
        for _ in range(3):
            listener.hear()
        assert listener.held == {*digests(1, 2, 3), *digests(1, salt="s")} and len(listener.held) == 4
        teller.publish(turns.evict())
        listener.hear()
        assert not listener.held and not listener.blocks.num_gaps


def test_a_client_that_comes_late_is_told_everything_first() -> None:
    turns = Turns()
    with telling() as (teller, listener):
        listener.hear()
        teller.publish(turns.store(1, 2))
        listener.hear()
        teller.leave(7)
        teller.publish(turns.store(5))
        teller.ask(7)
        assert listener.hear().anew
        assert listener.held == {*digests(1, 2), *digests(5)}


def test_after_a_gap_everything_is_forgotten_and_asked_anew() -> None:
    turns = Turns()
    with telling() as (teller, listener):
        listener.hear()
        teller.publish(turns.store(1))
        listener.hear()
        teller.publish(turns.store(2))
        listener.hear(lose=True)
        teller.publish(turns.store(3))
        listener.hear()
        assert not listener.held and listener.blocks.num_gaps == 1
        assert listener.hear().anew
        assert listener.held == {*digests(1), *digests(2), *digests(3)}
        teller.publish(turns.store(4))
        listener.hear()
        assert listener.held > set(digests(4))


def test_where_turns_were_lost_in_the_engine_clients_hear_that_nothing_is_held(monkeypatch) -> None:
    turns = Turns()
    teller = CacheTeller(SIZE, lambda _client, news: heard.put(news))
    heard: queue.Queue[CacheNews] = queue.Queue()
    monkeypatch.setattr(cache_teller, "MOST_TURNS", 2)
    teller.ask(1)
    teller.publish(turns.store(1))
    teller.publish(turns.store(2))
    assert teller.num_lost == 1
    monkeypatch.undo()
    teller.publish(turns.store(3))
    teller.start()
    first, second, third = (heard.get(timeout=PATIENCE) for _ in range(3))
    teller.close()
    assert first.anew and second == CacheNews(1, False, digests(1)[0])
    assert third == CacheNews(2, True, digests(3)[0])
