"""One of several API processes of a server: what `headway serve` runs, over engines that the supervisor owns.

The first line of its standard input is an `ApiLaunch`, the others are `News` of the engines. The end of its standard
input means that the supervisor is gone, even if it was killed: then the engines end, and so does this process.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import socket
from collections.abc import Iterable
from functools import partial

import msgspec
from msgspec.structs import replace

from headway.client.ended_link import EndedLink
from headway.client.engine_client import EngineClient
from headway.client.engine_clients import EngineClients
from headway.client.engines import Engines
from headway.client.in_thread import in_thread
from headway.client.link import EngineStartError, Link
from headway.client.prompt_encoder import PromptEncoder
from headway.client.totals import Counted
from headway.cluster.api_server import ApiLaunch
from headway.cluster.engine_news import EngineDown, EngineLost, EngineNews, EngineUp, Linked, SupervisorsRestarts
from headway.config import SchedulerConfig
from headway.exit import exit_process
from headway.model_files import ModelFiles
from headway.parent_process import at_end_of_parent
from headway.server.metrics.server_metrics import FOLDER_VARIABLE
from headway.server.serve import serve_with

STDIN = 0  # read without Python's buffer
_READ = 65536  # bytes


class Lines:
    """The lines on standard input. at_end: whether no more can come."""

    def __init__(self) -> None:
        self.at_end = False
        self._rest = b""

    def read(self) -> list[bytes] | None:
        """The lines of which the end has come; None at the end of all. Waits until something comes."""
        part = os.read(STDIN, _READ)
        self.at_end = not part
        *whole, self._rest = (self._rest + part).split(b"\n")
        return whole if part else None

    def skip(self) -> None:
        """Read what has come, without waiting."""
        while not self.at_end and select.select([STDIN], [], [], 0)[0]:
            self.read()


def main() -> int:
    at_end_of_parent(signal.SIGCONT)
    lines, first = Lines(), list[bytes]()
    while not first:
        if (read := lines.read()) is None:
            _remove_what_is_left(())
            return 0
        first = read
    launch = msgspec.json.decode(first[0], type=ApiLaunch)
    news = EngineNews(launch.client, launch.news)
    for line in first[1:]:
        news.hear(line)

    def hear() -> None:
        if (read := lines.read()) is None:
            asyncio.get_running_loop().remove_reader(STDIN)
            news.end("the supervisor is gone")
        for line in read or ():
            news.hear(line)

    async def start() -> Engines:
        asyncio.get_running_loop().add_reader(STDIN, hear)
        return await _client_of(launch, news)

    try:
        return serve_with(
            launch.config,
            launch.settings,
            start,
            lambda: socket.socket(fileno=launch.listening),
            says_what=launch.first,
        )
    finally:  # also if nothing can be printed any more
        lines.skip()
        if lines.at_end:
            _remove_what_is_left(news.socket_dirs)


def _remove_what_is_left(socket_dirs: Iterable[str]) -> None:
    """What the supervisor would remove. An engine removes its sockets too, but may have been killed before."""
    for folder in (*socket_dirs, os.environ.get(FOLDER_VARIABLE)):
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


async def _client_of(launch: ApiLaunch, news: EngineNews) -> Engines:
    """The client of the engines that are there, at least one. The others are taken when they come back."""
    files = await in_thread(partial(ModelFiles.resolve, launch.config))
    tokenizer = await in_thread(files.load_tokenizer)
    found = await _links_to(range(launch.engines), news)
    first = next(one.ready for one in found if isinstance(one, Linked))
    prompts = None if launch.engines == 1 else PromptEncoder(tokenizer, first.config.max_model_len)

    def client_of(engine: int, one: Linked | EngineDown | EngineLost) -> EngineClient:
        async def reopen(_paused: bool) -> tuple[Link, SchedulerConfig]:
            link, ready, before = await news.link_to(engine)
            client.begin_after(_for_restart(before), ready.pulse)
            return link, ready.config

        if isinstance(one, Linked):
            link, ready, before = one
        else:
            link, ready, before = EndedLink(one.how), replace(first, pulse=None), _for_restart(one.before)
        client = EngineClient(
            files=files,
            tokenizer=tokenizer,
            config=ready.config,
            link=link,
            index=launch.client,
            reopen=reopen,
            restarts=SupervisorsRestarts(news, engine),
            max_waiting=launch.config.max_waiting,
            placement=ready.placement,
            tells_cache=ready.tells_cache,
            prompts=prompts,
        )
        client.begin_after(before, ready.pulse)
        return client

    clients = {str(engine): client_of(engine, one) for engine, one in enumerate(found)}
    return clients["0"] if prompts is None else EngineClients.of(clients)


def _for_restart(before: Counted) -> Counted:
    """For a client that will count the next life itself, when it has come."""
    return replace(before, num_lives=before.num_lives - 1)


async def _links_to(engines: Iterable[int], news: EngineNews) -> list[Linked | EngineDown | EngineLost]:
    """Links to the engines that are there, at least one, and the news of the others. Raises EngineStartError if none
    will come."""
    while True:
        num_heard = news.num_heard
        found = await asyncio.gather(*(_link_to(engine, news) for engine in engines))
        if any(isinstance(one, Linked) for one in found):
            return found
        if all(isinstance(one, EngineLost) for one in found):
            raise EngineStartError("no engine is left")
        await news.more_than(num_heard)


async def _link_to(engine: int, news: EngineNews) -> Linked | EngineDown | EngineLost:
    """The first life of an engine is waited for; further ones are not."""
    while isinstance(word := await news.word_of(engine), EngineUp):
        try:
            return await news.link_to(engine)
        except EngineStartError:  # it may have died at this moment
            if news.is_over:
                raise
    return word


if __name__ == "__main__":
    exit_process(main())
