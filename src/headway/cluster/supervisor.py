"""A server of several processes: the supervisor owns engines and API processes, and the port that these share.

                         ┌─▶ API process 0 ─┐
    port (one socket) ───┤                  ├──▶ engine 0, engine 1 ...      requests and tokens, without the supervisor
                         └─▶ API process 1 ─┘
    supervisor: starts all, tells the API processes of the engines, and the engines of API processes that are gone

The API processes accept from one socket, so that connections that wait in the kernel survive the death of a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from prometheus_client import multiprocess

from headway.client.in_thread import in_thread
from headway.client.restart_budget import RestartBudget
from headway.cluster.api_server import ApiServer
from headway.cluster.engine_news import News
from headway.cluster.engine_process import EngineProcess
from headway.cluster.engine_shares import check_shares, config_of, environment_of
from headway.cluster.group import Group
from headway.cluster.group_life import keep_alive, teller
from headway.cluster.group_server import Tell
from headway.config import EngineConfig
from headway.logs import log_to_standard_error
from headway.model_files import ModelFiles
from headway.model_limits import ModelLimits
from headway.server.metrics.server_metrics import FOLDER_VARIABLE
from headway.server.serve import BAD_START, bind, engine_args
from headway.server.settings import ServerSettings

API_RESTARTS = 10  # of API processes, within ten minutes


class Supervisor:
    """See the module, and `Group` for the methods. For one event loop."""

    def __init__(
        self,
        config: EngineConfig,
        settings: ServerSettings,
        listening: socket.socket,
        metrics: str | None,
        tell: Tell,
    ) -> None:
        self._model = asyncio.ensure_future(in_thread(partial(_find, config)))
        self._metrics = metrics
        self._at_once = self._needs_no_engine = False
        numbers = itertools.count(1)  # no life of an API process has the number of another
        restarts = RestartBudget(settings.engine_restarts)
        self.engines = Group(
            [
                EngineProcess(
                    engine,
                    partial(self._found_for, engine),
                    engine_args=engine_args(settings),
                    environment=environment_of(config, engine, settings.data_parallel_size),
                    tells_cache=settings.data_parallel_size > 1,  # for the choice among engines
                    tell=self._tell_servers,
                    comes_back=lambda: restarts.allows(time.monotonic()),
                )
                for engine in range(settings.data_parallel_size)
            ],
            restarts,
            least=1,
        )
        self.servers = Group(
            [
                ApiServer(
                    index,
                    self._found,
                    settings,
                    listening,
                    clients=numbers,
                    news=self._news,
                    gone=self._gone,
                    environment={} if metrics is None else {FOLDER_VARIABLE: metrics},
                    tell=tell,
                )
                for index in range(settings.api_server_count)
            ],
            RestartBudget(API_RESTARTS),
            least=1,
        )

    async def start(self) -> None:
        """Raises GroupStartError if an engine or an API process does not start."""
        await _first_error(self.engines.start(), self.servers.start())

    async def run(self) -> None:
        await _first_error(self.engines.run(), self.servers.run())

    def terminate(self) -> None:
        """A further signal, after `stop`: nothing waits any more, but the engines for the end of the API processes."""
        self._at_once = True
        self.servers.terminate()
        if self._needs_no_engine:
            self.engines.terminate()

    async def stop(self, grace: float = 0.0) -> None:
        """The API processes first: their requests need the engines."""
        self._model.cancel()
        await self.servers.stop(grace)
        self._needs_no_engine = True
        if self._at_once:
            self.engines.terminate()  # `stop` asks them again
        await self.engines.stop()

    async def _found(self) -> tuple[EngineConfig, ModelLimits]:
        return await asyncio.shield(self._model)

    async def _found_for(self, engine: int) -> tuple[EngineConfig, ModelLimits]:
        config, limits = await self._found()
        return config_of(config, engine), limits

    def _news(self) -> list[News]:
        return [engine.news for engine in self.engines.processes.values() if engine.news is not None]

    def _tell_servers(self, news: News) -> None:
        for server in self.servers.processes.values():
            server.hear(news)

    def _gone(self, client: int, pid: int | None) -> None:
        for engine in self.engines.processes.values():
            engine.detach(client)
        if self._metrics is not None and pid is not None:
            multiprocess.mark_process_dead(pid, self._metrics)  # its counters stay, its gauges go


def _find(config: EngineConfig) -> tuple[EngineConfig, ModelLimits]:
    """All processes get the folder of the model, so that they can never read different revisions of a hub model."""
    files = ModelFiles.resolve(config)
    return replace(config, model=str(files.path), served_model_name=files.name), files.limits


def serve_supervised(config: EngineConfig, settings: ServerSettings) -> int:
    """`serve` by several processes. Returns the exit status: 0, 1 if too many of them have died, 2 if the server cannot
    start; the last two with one line on standard error.

    Prints "Headway serving MODEL at URL" on standard output when all processes take requests.
    """
    log_to_standard_error(settings.log_format, settings.log_level)
    try:
        check_shares(config, settings.data_parallel_size)
        with bind(settings.host, settings.port) as listening, _metrics_folder(settings) as metrics:
            return asyncio.run(_serve(config, settings, listening, metrics))
    except OSError as error:
        print(f"headway: cannot serve at {settings.host}:{settings.port}: {error.strerror or error}", file=sys.stderr)
    except ValueError as error:
        print(f"headway: {error}", file=sys.stderr)
    return BAD_START


async def _serve(
    config: EngineConfig,
    settings: ServerSettings,
    listening: socket.socket,
    metrics: str | None,
) -> int:
    tell = teller(settings, len(f"api-{settings.api_server_count - 1}"))
    supervisor = Supervisor(config, settings, listening, metrics, tell)

    def announce() -> None:
        server = next(iter(supervisor.servers.processes.values()))
        print(f"Headway serving {server.model} at {server.url}", flush=True)

    return await keep_alive(supervisor, settings.shutdown_grace, announce)


@contextlib.contextmanager
def _metrics_folder(settings: ServerSettings) -> Iterator[str | None]:
    """Where API processes add up what they count; None: there is one process."""
    if settings.api_server_count == 1:
        yield None
        return
    folder = tempfile.mkdtemp(prefix="headway-metrics-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _first_error(*waits: Coroutine[Any, Any, None]) -> None:
    """Wait for all, or for the first that raises."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
