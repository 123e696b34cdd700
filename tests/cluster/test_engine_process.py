"""What the supervisor tells of an engine over its lives, with links to engines that exist as far as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from headway.client.link import ProcessLink
from headway.cluster.engine_news import EngineDown, EngineLost, EngineUp, News
from headway.cluster.engine_process import EngineProcess
from headway.config import EngineConfig, SchedulerConfig
from headway.model_limits import ModelLimits
from headway.scheduler.snapshot import Snapshot
from headway.wire import to_client, to_engine

PATIENCE = 60.0  # seconds


class Link:
    """To an engine that says `pulses`, and the last of them when it has been killed already."""

    pid = 1234
    socket_dir = "nowhere"

    def __init__(self, pulses: list[Snapshot]) -> None:
        self.killed: list[bool] = []
        self.closing = asyncio.Event()
        self.sent: list[to_engine.ToEngine] = []
        self.paused: bool | None = None
        self._pulses = pulses
        self._ended = asyncio.Event()

    def launch(self, _config: EngineConfig, _limits: ModelLimits, *, paused: bool, tells_cache: bool) -> None:
        self.paused = paused

    async def wait_ready(self) -> to_client.Ready:
        return to_client.Ready(SchedulerConfig())

    async def receive(self) -> to_client.ToClient:
        if len(self._pulses) == 1:
            self._ended.set()
            for _ in range(5):
                await asyncio.sleep(0)
        if not self._pulses:
            await asyncio.Event().wait()
        return to_client.Status(self._pulses.pop(0), False, None)

    async def ended(self) -> str:
        await self._ended.wait()
        return "killed by SIGKILL"

    def send(self, message: to_engine.ToEngine) -> None:
        self.sent.append(message)

    def kill(self) -> None:
        self._ended.set()

    async def close(self, *, kill: bool = False) -> None:
        self.killed.append(kill)
        self.closing.set()
        if not kill:  # it takes its time
            await self.ended()


def counted(number: int) -> Snapshot:
    return Snapshot(num_requests_added=number)


def engine_over(links: list[Link], monkeypatch: pytest.MonkeyPatch, tell: Callable[[News], None]) -> EngineProcess:
    opened = iter(links)

    async def open_link(*_: object) -> Link:
        return next(opened)

    async def found() -> tuple[EngineConfig, ModelLimits]:
        return EngineConfig(), ModelLimits()

    comes_back = iter([True, False])
    monkeypatch.setattr(ProcessLink, "open", open_link)
    return EngineProcess(
        0, found, engine_args=(), environment=None, tells_cache=False, tell=tell, comes_back=lambda: next(comes_back)
    )


async def test_all_news_have_what_was_counted_before_up_to_the_last_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    links = [Link([counted(2), counted(5)]), Link([counted(1), counted(3)])]
    news: list[News] = []
    engine = engine_over(links, monkeypatch, news.append)
    for _ in links:
        assert await asyncio.wait_for(engine.run(), PATIENCE) == "killed by SIGKILL"
    engine.given_up("killed by SIGKILL")
    assert [type(one) for one in news] == [EngineUp, EngineDown, EngineUp, EngineDown, EngineLost]
    assert [one.before.snapshot.num_requests_added for one in news] == [0, 5, 5, 8, 8]
    assert [one.comes_back for one in news if isinstance(one, EngineDown)] == [True, False]
    assert [one.before.num_lives for one in news] == [0, 1, 1, 2, 2]


async def test_an_engine_that_does_not_end_is_killed_when_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link([])
    engine = engine_over([link], monkeypatch, lambda _: None)
    life = asyncio.create_task(engine.run())
    await asyncio.wait_for(engine.ready.wait(), PATIENCE)
    engine.terminate()
    await asyncio.wait_for(link.closing.wait(), PATIENCE)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not life.done() and link.killed == [False]
    engine.terminate()
    assert await asyncio.wait_for(life, PATIENCE) == "it was asked to end"
