"""An engine process as its supervisor sees it, who is its first client."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from headway.client.link import EngineStartError, ProcessLink
from headway.client.totals import Counted, Totals
from headway.cluster.engine_news import EngineDown, EngineLost, EngineUp, News
from headway.cluster.group import Kept
from headway.config import EngineConfig
from headway.model_limits import ModelLimits
from headway.wire import to_client, to_engine
from headway.wire.launch import output_address
from headway.wire.wire_errors import WireError, WireErrors

T = TypeVar("T")
Found = Callable[[], Awaitable[tuple[EngineConfig, ModelLimits]]]

_LAST_PULSE_S = 0.1  # seconds for what an engine has said just before its end


class EngineProcess(Kept):
    """Runs an engine process, one at a time, each with a new folder of sockets. A life that follows another one begins
    paused if the last pulse said so.

    number: of the engine, from 0. found: gives settings and limits once the model is found, or raises. engine_args: see
    `python -m headway.engine.process --help`. environment: None: that of this process. tells_cache: its clients may ask
    which blocks its cache holds. tell: gets the news of its lives. comes_back: whether another life may follow
    when a life ends now. news: the last of them; None: there are none yet.
    """

    def __init__(
        self,
        number: int,
        found: Found,
        *,
        engine_args: Sequence[str],
        environment: Mapping[str, str] | None,
        tells_cache: bool,
        tell: Callable[[News], None],
        comes_back: Callable[[], bool],
    ) -> None:
        self.name = f"engine-{number}"
        self.ready = asyncio.Event()
        self.complaint = ""
        self.news: News | None = None
        self._number = number
        self._found = found
        self._engine_args = engine_args
        self._environment = environment
        self._tells_cache = tells_cache
        self._tell = tell
        self._comes_back = comes_back
        self._link: ProcessLink | None = None
        self._ending = asyncio.Event()
        self._totals = Totals()
        self._num_lives = 0  # that are over

    async def run(self) -> str:
        self.complaint = ""
        link = self._link = await ProcessLink.open(self._engine_args, self._environment)
        how = "it was asked to end"
        try:
            config, limits = await self._found()
            tells_cache = self._tells_cache and config.enable_prefix_caching
            link.launch(config, limits, paused=self._totals.snapshot.paused, tells_cache=tells_cache)
            if await self._unless_asked_to_end(link.wait_ready()):
                self.ready.set()
                self._say(EngineUp(self._number, link.pid, link.socket_dir, self._before))
                how = await self._unless_asked_to_end(_end_of(link, self._totals.take)) or how
        except EngineStartError as error:
            self.complaint = how = str(error)
        finally:
            if self.ready.is_set():  # at once: the end of the process can take a while
                self.ready.clear()
                self._totals.end(paused=self._totals.snapshot.paused)
                self._num_lives += 1
                self._say(EngineDown(self._number, how, self._before, self._comes_back()))
            await link.close(kill=not self._ending.is_set())
            self._link = None
        return how

    def terminate(self) -> None:
        if self._ending.is_set() and self._link is not None:
            self._link.kill()  # an engine in a long step, or stuck, is not waited for
        self._ending.set()

    def given_up(self, why: str) -> None:
        self._say(EngineLost(self._number, why, self._before))

    @property
    def _before(self) -> Counted:
        """What the lives that are over have counted."""
        return self._totals.counted(self._num_lives)

    def _say(self, news: News) -> None:
        self.news = news
        self._tell(news)

    def detach(self, client: int) -> None:
        """This API process is gone: its requests are of no use."""
        if self._link is not None:
            self._link.send(to_engine.Detach(client))
            with contextlib.suppress(OSError):  # it never came, or has taken its socket along
                os.unlink(output_address(self._link.socket_dir, client).removeprefix("ipc://"))

    async def _unless_asked_to_end(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` returns or raises; None if the process is asked to end before."""
        working, ending = asyncio.ensure_future(work), asyncio.ensure_future(self._ending.wait())
        async with _cancelled_at_the_end(working, ending):
            await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None


async def _end_of(link: ProcessLink, note: Callable[[to_client.Status], None]) -> str:
    """Take what the engine says, until it ends or tells of its failure. Returns how, in a few words. note: gets its
    pulses, also the last one on its way: an API process may have shown it."""
    failing, ended = asyncio.ensure_future(_failure_of(link, note)), asyncio.ensure_future(link.ended())
    async with _cancelled_at_the_end(failing, ended):
        await asyncio.wait({failing, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not failing.done():
            await asyncio.wait({failing}, timeout=_LAST_PULSE_S)
        return failing.result() if failing.done() else ended.result()


async def _failure_of(link: ProcessLink, note: Callable[[to_client.Status], None]) -> str:
    errors = WireErrors("client")
    while True:
        try:
            message = await link.receive()
        except WireError as error:
            errors.note(error)
            continue
        if isinstance(message, to_client.Status):
            note(message)
            if message.failure is not None:
                return message.failure


@asynccontextmanager
async def _cancelled_at_the_end(*tasks: asyncio.Future[Any]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
