"""One of several API processes of a server: what `headway serve` runs, over engines that the supervisor owns.

The first line of its standard input is an `ApiLaunch`, the others are `News` of the engines. The end of its standard
input means that the supervisor is gone, even if it was killed: then the engines end, and so does this process.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from functools import partial

import msgspec

from headway.client.engine_client import EngineClient
from headway.client.in_thread import in_thread
from headway.client.link import EngineStartError, Link
from headway.cluster.api_server import METRICS_FOLDER, ApiLaunch
from headway.cluster.engine_news import EngineNews
from headway.config import SchedulerConfig
from headway.model_files import ModelFiles
from headway.server.serve import serve_with

STDIN = 0  # read without Python's buffer
_READ = 65536  # bytes


class Lines:
    """The lines on standard input."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self) -> list[bytes] | None:
        """The lines of which the end has come; None at the end of all. Waits until something comes."""
        part = os.read(STDIN, _READ)
        *whole, self._rest = (self._rest + part).split(b"\n")
        return whole if part else None


def main() -> int:
    lines, first = Lines(), list[bytes]()
    while not first:
        if (read := lines.read()) is None:
            return 0
        first = read
    launch = msgspec.json.decode(first[0], type=ApiLaunch)
    news = EngineNews(launch.client, launch.up)
    for line in first[1:]:
        news.hear(line)

    def hear() -> None:
        if (read := lines.read()) is None:
            asyncio.get_running_loop().remove_reader(STDIN)
            news.end("the supervisor is gone")
        for line in read or ():
            news.hear(line)

    async def start() -> EngineClient:
        asyncio.get_running_loop().add_reader(STDIN, hear)
        return await _client_of(launch, news)

    status = serve_with(
        launch.config,
        launch.settings,
        start,
        lambda: socket.socket(fileno=launch.listening),
        says_what=launch.first,
    )
    if news.is_over and METRICS_FOLDER in os.environ:
        shutil.rmtree(os.environ[METRICS_FOLDER], ignore_errors=True)
    return status


async def _client_of(launch: ApiLaunch, news: EngineNews) -> EngineClient:
    """The client of the engines, once all of them take requests."""
    files = await in_thread(partial(ModelFiles.resolve, launch.config))
    tokenizer = await in_thread(files.load_tokenizer)

    async def attach(engine: int) -> EngineClient:
        while True:
            try:
                link, ready = await news.link_to(engine)
                break
            except EngineStartError:  # it died at this moment, and another comes
                if news.is_over:
                    raise

        async def reopen(_paused: bool) -> tuple[Link, SchedulerConfig]:
            link, ready = await news.link_to(engine)
            return link, ready.config

        return EngineClient(
            files=files,
            tokenizer=tokenizer,
            config=ready.config,
            link=link,
            index=launch.client,
            reopen=reopen,
            restarts=news,
            max_waiting=launch.config.max_waiting,
            placement=ready.placement,
        )

    (only,) = await asyncio.gather(*(attach(engine) for engine in range(launch.engines)))
    return only


if __name__ == "__main__":
    sys.exit(main())
