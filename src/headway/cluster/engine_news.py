"""What the supervisor tells an API process of its engines: a line of JSON each, on its standard input."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import zmq

from headway.client.link import AttachedLink, EngineStartError
from headway.client.restart_budget import Restarts
from headway.client.totals import Counted
from headway.wire.launch import input_address, output_address
from headway.wire.to_client import Ready


class EngineUp(msgspec.Struct, frozen=True, tag=True):
    """An engine process takes requests. engine: counted from 0. socket_dir: the folder of its sockets, new for each
    life. before: what its earlier lives have counted, so that all API processes count on from the same."""

    engine: int
    pid: int
    socket_dir: str
    before: Counted = Counted()


class EngineDown(msgspec.Struct, frozen=True, tag=True):
    """An engine process is gone. how: it ended, in a few words."""

    engine: int
    how: str


class EngineLost(msgspec.Struct, frozen=True, tag=True):
    """An engine is gone for good. why: it died."""

    engine: int
    why: str


News = EngineUp | EngineDown | EngineLost
_decoder = msgspec.json.Decoder(News)
_END_IS_TOLD_S = 5.0  # seconds after the end of a link, until which the supervisor tells of the end of the engine


class EngineNews:
    """The engines as this process has heard of them, and the links to them. For one event loop.

    client: the number of this process. news: what there was before it began. socket_dirs: of all lives of engines.
    """

    def __init__(self, client: int, news: Sequence[News]) -> None:
        self.socket_dirs: set[str] = set()
        self._client = client
        self._up: dict[int, EngineUp] = {}
        self._lost: dict[int, str] = {}  # why no further life will come
        self._links: dict[int, tuple[EngineUp, AttachedLink]] = {}
        self._changed = asyncio.Event()
        self._over: str | None = None
        for one in news:
            self._take(one)

    @property
    def is_over(self) -> bool:
        """Whether no engine will come any more."""
        return self._over is not None

    def is_lost(self, engine: int) -> bool:
        """Whether no further life of this engine will come."""
        return self.is_over or engine in self._lost

    def hear(self, line: bytes) -> None:
        """A line of the supervisor."""
        self._take(_decoder.decode(line))

    def end(self, why: str) -> None:
        """No further engine will come: the supervisor is gone, and its engines with it."""
        self._over = self._over or why
        for engine in self._links:
            self._cut(engine, why)
        self._changed.set()

    async def link_to(self, engine: int) -> tuple[AttachedLink, Ready, Counted]:
        """Wait for this engine, and attach to it. Also returns what its earlier lives have counted. Raises
        EngineStartError if it dies meanwhile, or will not come."""
        while (up := self._up.get(engine)) is None or self._has_followed(up):
            if self.is_lost(engine):
                raise EngineStartError(self._over or self._lost[engine])
            self._changed.clear()
            try:
                # An engine tells its own failure to all: here it may come before the supervisor's word of its end.
                await asyncio.wait_for(self._changed.wait(), None if up is None else _END_IS_TOLD_S)
            except TimeoutError:
                self.end("the engine lives, and cannot be followed")
        try:
            link = AttachedLink(
                input_address(up.socket_dir), output_address(up.socket_dir, self._client), self._client, up.pid
            )
        except zmq.ZMQError as error:  # its folder is gone already
            if self._up.get(engine) is up:
                del self._up[engine]
            raise EngineStartError(f"the sockets of the engine cannot be used: {error}") from None
        self._links[engine] = up, link
        try:
            return link, await link.attach(), up.before
        except BaseException:
            await link.close(kill=True)
            raise

    def _has_followed(self, up: EngineUp) -> bool:
        """Whether there has been a link to this life."""
        return up.engine in self._links and self._links[up.engine][0] == up

    def _take(self, news: News) -> None:
        match news:
            case EngineUp(engine):
                self._up[engine] = news
                self.socket_dirs.add(news.socket_dir)
            case EngineDown(engine, how):
                self._up.pop(engine, None)
                self._cut(engine, how)
            case EngineLost(engine, why):
                self._lost[engine] = why
        self._changed.set()

    def _cut(self, engine: int, how: str) -> None:
        if engine in self._links:
            self._links[engine][1].engine_has_ended(how)


class SupervisorsRestarts(Restarts):
    """The supervisor starts this engine again, and counts: there is hope until it has given the engine up."""

    def __init__(self, news: EngineNews, engine: int) -> None:
        self._news = news
        self._engine = engine

    def __str__(self) -> str:
        return "as the supervisor says"

    def take(self, now: float) -> bool:  # noqa: ARG002
        return not self._news.is_lost(self._engine)
