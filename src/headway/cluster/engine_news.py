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


News = EngineUp | EngineDown
_decoder = msgspec.json.Decoder(News)


class EngineNews(Restarts):
    """The engines as this process has heard of them, and the links to them. For one event loop.

    It allows restarts for as long as there is a supervisor, who starts the engines and counts.

    client: the number of this process. up: the engines that are up when the process begins.
    """

    def __init__(self, client: int, up: Sequence[EngineUp]) -> None:
        self._client = client
        self._up = {news.engine: news for news in up}
        self._links: dict[int, tuple[EngineUp, AttachedLink]] = {}
        self._changed = asyncio.Event()
        self._over: str | None = None

    def take(self, now: float) -> bool:  # noqa: ARG002
        return self._over is None

    def __str__(self) -> str:
        return "as the supervisor says"

    @property
    def is_over(self) -> bool:
        """Whether no engine will come any more."""
        return self._over is not None

    def hear(self, line: bytes) -> None:
        """A line of the supervisor."""
        news = _decoder.decode(line)
        if isinstance(news, EngineUp):
            self._up[news.engine] = news
        else:
            self._up.pop(news.engine, None)
            self._cut(news.engine, news.how)
        self._tell()

    def end(self, why: str) -> None:
        """No further engine will come: the supervisor is gone, and its engines with it."""
        self._over = self._over or why
        for engine in self._links:
            self._cut(engine, why)
        self._tell()

    async def link_to(self, engine: int) -> tuple[AttachedLink, Ready, Counted]:
        """Wait for this engine, and attach to it. Raises EngineStartError if it dies meanwhile, or none will come."""
        while (up := self._up.get(engine)) is None:
            if self._over is not None:
                raise EngineStartError(self._over)
            self._changed.clear()
            await self._changed.wait()
        if engine in self._links and self._links[engine][0] == up:
            self.end("the engine lives, and cannot be followed")
            raise EngineStartError("the engine lives, and cannot be followed")
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

    def _cut(self, engine: int, how: str) -> None:
        if engine in self._links:
            self._links[engine][1].engine_has_ended(how)

    def _tell(self) -> None:
        self._changed.set()
