"""In which order a supervisor ends its processes, which exist as far as a test says."""

from __future__ import annotations

import asyncio
import socket

import pytest

from headway.cluster import supervisor as supervisor_module
from headway.cluster.group import Kept
from headway.cluster.supervisor import Supervisor
from headway.config import EngineConfig
from headway.model_limits import ModelLimits
from headway.server.settings import ServerSettings

PATIENCE = 60.0  # seconds


class Process(Kept):
    """Ends when it is asked for the second time, or for the first. told: gets its name each time."""

    complaint = ""
    news = None

    def __init__(self, name: str, told: list[str], times: int) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self._told = told
        self._times = times
        self._end = asyncio.Event()

    async def run(self) -> str:
        self.ready.set()
        await self._end.wait()
        return "it was asked to end"

    def terminate(self) -> None:
        self._told.append(self.name)
        self._times -= 1
        if self._times == 0:
            self._end.set()


async def until(told: list[str], names: list[str]) -> None:
    async with asyncio.timeout(PATIENCE):
        while told != names:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("api_ends_at", [1, 2])
async def test_a_further_signal_ends_the_engines_at_once_but_after_the_api_processes(
    monkeypatch: pytest.MonkeyPatch, api_ends_at: int
) -> None:
    told: list[str] = []
    monkeypatch.setattr(supervisor_module, "EngineProcess", lambda *_, **__: Process("engine", told, 2))
    monkeypatch.setattr(supervisor_module, "ApiServer", lambda *_, **__: Process("api", told, api_ends_at))
    monkeypatch.setattr(supervisor_module, "_find", lambda config: (config, ModelLimits()))
    with socket.socket() as listening:
        supervisor = Supervisor(EngineConfig(), ServerSettings(), listening, None, lambda *_: None)
        await supervisor.start()
        stopping = asyncio.create_task(supervisor.stop(grace=1e6))
        await until(told, ["api", "engine"] if api_ends_at == 1 else ["api"])
        supervisor.terminate()
        await asyncio.wait_for(stopping, PATIENCE)
    assert told == (["api", "engine", "api", "engine"] if api_ends_at == 1 else ["api", "api", "engine", "engine"])
