"""What an engine says of the blocks in its cache, followed without a gap."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from headway.block_digests import DIGEST_SIZE, Digest
from headway.wire.to_client import CacheNews

logger = logging.getLogger(__name__)

ASK_SECONDS = 2.0  # before the engine is asked again, if no answer has come
Learn = Callable[[list[Digest]], None]
Forget = Callable[[list[Digest] | None], None]


class CachedBlocks:
    """News of an engine, in the order of their numbers, passed on. After a gap all is forgotten, and the engine is
    asked to say everything anew; news before its answer are ignored.

    ask: asks the engine. learn, forget: take what it holds and holds no more; None: it holds nothing.
    most: blocks that the engine can hold. An engine that says more has a fault, and is believed no more.
    """

    def __init__(
        self,
        ask: Callable[[], None],
        learn: Learn,
        forget: Forget,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._learn = learn
        self._forget = forget
        self._most = most
        self._clock = clock
        self._held = 0
        self._next: int | None = None  # the number of the next news; None: the engine has been asked
        self._asked = float("-inf")
        self.num_gaps = 0
        self._ask_anew()

    def take(self, news: CacheNews) -> None:
        """The engine says this."""
        if news.anew:
            self._forget(None)
            self._held = 0
        elif self._next is None:
            if self._clock() - self._asked > ASK_SECONDS:
                self._ask_anew()
            return
        elif news.number != self._next:
            self.num_gaps += 1
            logger.info("news %d of a cache came where %d was next: it is asked anew", news.number, self._next)
            self._forget(None)
            self._ask_anew()
            return
        self._next = news.number + 1
        stored, removed = _digests(news.stored), _digests(news.removed)
        self._held += len(stored) - len(removed)
        if self._held > self._most:
            logger.warning("an engine says that it holds %d blocks, and it has %d", self._held, self._most)
            self._forget(None)
            self._next, self._asked = None, float("inf")
            return
        self._learn(stored)
        if removed:
            self._forget(removed)

    def _ask_anew(self) -> None:
        self._next = None
        self._asked = self._clock()
        self._ask()


def _digests(joined: bytes) -> list[Digest]:
    return [joined[start : start + DIGEST_SIZE] for start in range(0, len(joined), DIGEST_SIZE)]
