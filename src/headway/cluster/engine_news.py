"""What the supervisor tells an API process of its engines: a line of JSON each, on its standard input."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import zmq

from headway.client.link import AttachedLink, EngineStartError, Link
from headway.client.restart_budget import Restarts
from headway.client.totals import Counted
from headway.wire.launch import input_address, output_address
from headway.wire.to_client import Ready


class EngineUp(msgspec.Struct, frozen=True, tag=True):
    """An engine process takes requests. engine: counted from 0. socket_dir: the folder of its sockets, new for each
    life. before: what the lives of the engine have counted that are over, in this news and in the others. All API
    processes count on from there, so that a new one never shows less than an old one did."""

    engine: int
    pid: int
    socket_dir: str
    before: Counted = Counted()


class EngineDown(msgspec.Struct, frozen=True, tag=True):
    """An engine process is gone. how: it ended, in a few words. comes_back: another one takes its place; no promise,
    since another engine may take the last restart."""

    engine: int
    how: str
    before: Counted = Counted()
    comes_back: bool = True


class EngineLost(msgspec.Struct, frozen=True, tag=True):
    """An engine is gone for good. how: its last life ended."""

    engine: int
    how: str
    before: Counted = Counted()


News = EngineUp | EngineDown | EngineLost
_decoder = msgspec.json.Decoder(News)
_END_IS_TOLD_S = 5.0  # seconds after the end of a link, until which the supervisor tells of the end of the engine


class Linked(NamedTuple):
    """An engine that takes requests of this process. before: what its earlier lives have counted."""

    link: Link
    ready: Ready
    before: Counted


class EngineNews:
    """The engines as this process has heard of them, and the links to them. For one event loop.

    client: the number of this process. news: what there was before it began. socket_dirs: of all lives of engines.
    num_heard: how often something was heard.
    """

    def __init__(self, client: int, news: Sequence[News]) -> None:
        self.socket_dirs: set[str] = set()
        self.num_heard = 0
        self._client = client
        self._last: dict[int, News] = {}
        self._tried: dict[int, EngineUp] = {}  # the last life of each engine to which there was a link, or none can be
        self._links: dict[int, AttachedLink] = {}
        self._changed = asyncio.Event()
        self._over: str | None = None
        for one in news:
            self._take(one)

    @property
    def is_over(self) -> bool:
        """Whether no engine will come any more."""
        return self._over is not None

    def may_come_back(self, engine: int) -> bool:
        """Whether a further life of this engine may come, as far as is known."""
        match self._last.get(engine):
            case EngineLost() | EngineDown(comes_back=False):
                return False
        return not self.is_over

    def hear(self, line: bytes) -> None:
        """A line of the supervisor."""
        self._take(_decoder.decode(line))

    def end(self, why: str) -> None:
        """No further engine will come: the supervisor is gone, and its engines with it."""
        self._over = self._over or why
        for engine in self._links:
            self._cut(engine, why)
        self._wake()

    async def more_than(self, num_heard: int) -> None:
        """Wait until so many news, and one more, have been heard."""
        while self.num_heard <= num_heard:
            self._changed.clear()
            await self._changed.wait()

    async def word_of(self, engine: int) -> News:
        """The last news of this engine. Waits for the first, and for word of the end of a life that was tried. Raises
        EngineStartError if none will come."""
        while self._over is None:
            last = self._last.get(engine)
            if last is not None and last != self._tried.get(engine):
                return last
            try:
                # An engine tells its own failure to all: here it may come before the supervisor's word of its end.
                await asyncio.wait_for(self.more_than(self.num_heard), None if last is None else _END_IS_TOLD_S)
            except TimeoutError:
                self.end("the engine lives, and cannot be followed")
        raise EngineStartError(self._over)

    async def link_to(self, engine: int) -> Linked:
        """Wait for this engine, and attach to it. Raises EngineStartError if it dies meanwhile, or will not come."""
        while not isinstance(word := await self.word_of(engine), EngineUp):
            if isinstance(word, EngineLost):
                raise EngineStartError(word.how)
            await self.more_than(self.num_heard)
        self._tried[engine] = word
        try:
            link = AttachedLink(
                input_address(word.socket_dir), output_address(word.socket_dir, self._client), self._client, word.pid
            )
        except zmq.ZMQError as error:  # its folder is gone already
            raise EngineStartError(f"the sockets of the engine cannot be used: {error}") from None
        self._links[engine] = link
        try:
            return Linked(link, await link.attach(), word.before)
        except BaseException:
            await link.close(kill=True)
            raise

    def _take(self, news: News) -> None:
        self._last[news.engine] = news
        match news:
            case EngineUp():
                self.socket_dirs.add(news.socket_dir)
            case EngineDown(engine, how):
                self._cut(engine, how)
        self._wake()

    def _wake(self) -> None:
        self.num_heard += 1
        self._changed.set()

    def _cut(self, engine: int, how: str) -> None:
        if engine in self._links:
            self._links[engine].engine_has_ended(how)


class SupervisorsRestarts(Restarts):
    """The supervisor starts this engine again, and counts: there is hope until it has given the engine up."""

    def __init__(self, news: EngineNews, engine: int) -> None:
        self._news = news
        self._engine = engine

    def __str__(self) -> str:
        return "as the supervisor says"

    def take(self, now: float) -> bool:  # noqa: ARG002
        return self._news.may_come_back(self._engine)
