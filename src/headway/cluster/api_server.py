"""One of several API processes of a server, as the supervisor sees it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from headway.cluster.engine_news import News
from headway.cluster.engine_process import Found
from headway.cluster.group_server import ServerProcess, Tell
from headway.config import EngineConfig
from headway.server.settings import ServerSettings

COMMAND = (sys.executable, "-P", "-m", "headway.cluster.api_process")


class ApiLaunch(msgspec.Struct, frozen=True):
    """The first line that an API process reads on its standard input. Lines of `News` follow.

    config: of the engines; it names the model's folder. listening: the file descriptor of the port. client: the number
    of the process, which no other life has. engines: their number. news: the last of each engine. first: whether it is
    the first life of the first process, which says what is served.
    """

    config: EngineConfig
    settings: ServerSettings
    listening: int
    client: int
    engines: int
    news: list[News]
    first: bool


class ApiServer(ServerProcess):
    """Runs an API process, one at a time, each with a number of its own.

    found: gives the settings of the engines, once the model is found. clients: gives the numbers. news: the
    last of each engine. gone: gets the number of a life that is over, and its process id. environment: more variables.
    """

    def __init__(
        self,
        index: int,
        found: Found,
        settings: ServerSettings,
        listening: socket.socket,
        *,
        clients: Iterator[int],
        news: Callable[[], list[News]],
        gone: Callable[[int, int | None], None],
        environment: Mapping[str, str],
        tell: Tell,
    ) -> None:
        super().__init__(f"api-{index}", tell)
        self._found = found
        self._settings = replace(settings, log_stats=settings.log_stats and index == 0)  # all would say the same
        self._listening = listening
        self._clients = clients
        self._news = news
        self._gone = gone
        self._environment = environment
        self._first = index == 0
        self._client = 0

    def command(self) -> Sequence[str]:
        return COMMAND

    def more(self) -> dict[str, Any]:
        return {"pass_fds": (self._listening.fileno(),), "env": {**os.environ, **self._environment}}

    async def first_line(self) -> bytes:
        config, _ = await self._found()
        self._client, first, self._first = next(self._clients), self._first, False
        launch = ApiLaunch(
            config=config,
            settings=self._settings,
            listening=self._listening.fileno(),
            client=self._client,
            engines=self._settings.data_parallel_size,
            news=self._news(),
            first=first,
        )
        return msgspec.json.encode(launch)

    def hear(self, news: News) -> None:
        """Tell the process."""
        self.write(msgspec.json.encode(news))

    async def run(self) -> str:
        try:
            return await super().run()
        finally:
            self._gone(self._client, self.last_pid)
