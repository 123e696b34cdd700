"""What an API process hears of its engines, with an engine that exists as far as a socket goes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from headway.client.link import EngineStartError
from headway.cluster import engine_news
from headway.cluster.engine_news import EngineDown, EngineLost, EngineNews, EngineUp, News, SupervisorsRestarts
from headway.config import SchedulerConfig
from headway.wire import codec, to_client, to_engine
from headway.wire.launch import input_address

PATIENCE = 60.0
READY = to_client.Ready(SchedulerConfig())


class Engine:
    """Says that it is ready to each client that comes."""

    def __init__(self, context: zmq.Context, folder: Path) -> None:
        folder.mkdir()
        self.up = EngineUp(0, 1234, str(folder))
        self._context = context
        self._commands = context.socket(zmq.PULL)
        self._commands.bind(input_address(str(folder)))
        self.came: list[to_engine.ToEngine] = []

    async def serve(self, count: int = 1) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.came) < count:
                while not self._commands.poll(0):
                    await asyncio.sleep(0.01)
                message = codec.decode_to_engine(self._commands.recv())
                self.came.append(message)
                if isinstance(message, to_engine.Attach):
                    with self._context.socket(zmq.PUSH) as socket:
                        socket.connect(message.address)
                        socket.send(codec.encode(READY))

    def close(self) -> None:
        self._commands.close(linger=0)


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    with zmq.Context() as context:
        yield context


@pytest.fixture
def engine(context: zmq.Context, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(context, tmp_path / "a")
    yield engine
    engine.close()


def said(news: News) -> bytes:
    return msgspec.json.encode(news)


async def until_it_waits(task: asyncio.Task) -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()


async def test_an_engine_that_comes_later_is_waited_for(engine: Engine) -> None:
    news = EngineNews(client=5, news=[])
    linking = asyncio.create_task(news.link_to(0))
    await until_it_waits(linking)
    news.hear(said(EngineUp(1, 99, "another")))
    await until_it_waits(linking)
    news.hear(said(engine.up))
    await engine.serve()
    link, ready, _ = await asyncio.wait_for(linking, PATIENCE)
    assert ready == READY and link.pid == 1234
    assert [message.client for message in engine.came if isinstance(message, to_engine.Attach)] == [5]
    await link.close()


async def test_word_of_the_end_ends_the_link_and_the_next_life_is_waited_for(
    engine: Engine, context: zmq.Context, tmp_path: Path
) -> None:
    news = EngineNews(client=5, news=[engine.up])
    linking = asyncio.create_task(news.link_to(0))
    await engine.serve()
    link, *_ = await asyncio.wait_for(linking, PATIENCE)
    ended = asyncio.create_task(link.ended())
    news.hear(said(EngineDown(0, "killed by SIGKILL")))
    assert await asyncio.wait_for(ended, PATIENCE) == "killed by SIGKILL"
    await link.close(kill=True)
    again = asyncio.create_task(news.link_to(0))
    await until_it_waits(again)
    assert SupervisorsRestarts(news, 0).take(0.0), "the supervisor starts it again"
    second = Engine(context, tmp_path / "b")
    news.hear(said(second.up))
    await second.serve()
    link, *_ = await asyncio.wait_for(again, PATIENCE)
    await link.close()
    second.close()


async def test_an_engine_whose_folder_is_gone_is_waited_for_anew(engine: Engine, tmp_path: Path) -> None:
    news = EngineNews(client=5, news=[EngineUp(0, 1, str(tmp_path / "removed"))])
    with pytest.raises(EngineStartError, match="cannot be used"):
        await news.link_to(0)
    linking = asyncio.create_task(news.link_to(0))
    await until_it_waits(linking)
    news.hear(said(engine.up))
    await engine.serve()
    link, *_ = await asyncio.wait_for(linking, PATIENCE)
    await link.close()


async def test_an_engine_that_dies_while_one_comes_is_an_error_and_no_end(engine: Engine) -> None:
    news = EngineNews(client=5, news=[engine.up])
    linking = asyncio.create_task(news.link_to(0))
    await until_it_waits(linking)
    news.hear(said(EngineDown(0, "exit status 1")))
    with pytest.raises(EngineStartError, match="exit status 1"):
        await asyncio.wait_for(linking, PATIENCE)
    assert not news.is_over


async def test_an_engine_that_is_lost_is_not_waited_for_and_the_others_are() -> None:
    news = EngineNews(client=5, news=[EngineLost(1, "it died too often")])
    linking = [asyncio.create_task(news.link_to(engine)) for engine in range(3)]
    with pytest.raises(EngineStartError, match="too often"):
        await asyncio.wait_for(linking[1], PATIENCE)
    news.hear(said(EngineLost(0, "it died of something else")))
    with pytest.raises(EngineStartError, match="something else"):
        await asyncio.wait_for(linking[0], PATIENCE)
    await until_it_waits(linking[2])
    linking[2].cancel()
    assert [SupervisorsRestarts(news, engine).take(0.0) for engine in range(3)] == [False, False, True]
    assert not news.is_over


async def test_the_end_of_the_supervisor_ends_links_and_hope(engine: Engine) -> None:
    news = EngineNews(client=5, news=[engine.up])
    linking = asyncio.create_task(news.link_to(0))
    await engine.serve()
    link, *_ = await asyncio.wait_for(linking, PATIENCE)
    other = asyncio.create_task(news.link_to(1))
    await until_it_waits(other)
    news.end("the supervisor is gone")
    assert await asyncio.wait_for(link.ended(), PATIENCE) == "the supervisor is gone"
    with pytest.raises(EngineStartError, match="the supervisor is gone"):
        await asyncio.wait_for(other, PATIENCE)
    assert news.is_over and not SupervisorsRestarts(news, 0).take(0.0)
    await link.close(kill=True)


async def test_an_engine_that_told_its_own_failure_is_waited_for_until_the_supervisor_tells_of_its_end(
    engine: Engine, context: zmq.Context, tmp_path: Path
) -> None:
    """Its clients hear of the failure when the supervisor does, and some of them sooner than the supervisor's word."""
    news = EngineNews(client=5, news=[engine.up])
    linking = asyncio.create_task(news.link_to(0))
    await engine.serve()
    link, *_ = await asyncio.wait_for(linking, PATIENCE)
    await link.close(kill=True)
    again = asyncio.create_task(news.link_to(0))
    await until_it_waits(again)
    news.hear(said(EngineUp(1, 99, "another")))
    await until_it_waits(again)
    news.hear(said(EngineDown(0, "rank 1 has ended")))
    await until_it_waits(again)
    second = Engine(context, tmp_path / "b")
    news.hear(said(second.up))
    await second.serve()
    link, *_ = await asyncio.wait_for(again, PATIENCE)
    assert not news.is_over
    await link.close()
    second.close()


async def test_a_life_of_an_engine_that_was_left_is_not_followed_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine knows this number, and would not answer: the process ends, and another takes its place."""
    monkeypatch.setattr(engine_news, "_END_IS_TOLD_S", 0.1)
    news = EngineNews(client=5, news=[engine.up])
    linking = asyncio.create_task(news.link_to(0))
    await engine.serve()
    link, *_ = await asyncio.wait_for(linking, PATIENCE)
    await link.close(kill=True)
    with pytest.raises(EngineStartError, match="cannot be followed"):
        await news.link_to(0)
    assert news.is_over


async def test_an_engine_that_is_down_is_told_at_once_and_one_that_was_left_or_never_came_is_waited_for(
    engine: Engine,
) -> None:
    down = EngineDown(1, "killed by SIGKILL")
    news = EngineNews(client=5, news=[engine.up, down])
    assert await news.word_of(0) == engine.up
    assert await news.word_of(1) == down
    linking = asyncio.create_task(news.link_to(0))
    await engine.serve()
    await (await asyncio.wait_for(linking, PATIENCE)).link.close(kill=True)
    left, new = asyncio.create_task(news.word_of(0)), asyncio.create_task(news.word_of(2))
    await until_it_waits(left)
    await until_it_waits(new)
    news.hear(said(EngineDown(0, "exit status 1")))
    news.hear(said(EngineUp(2, 99, "another")))
    assert (await left, await new) == (EngineDown(0, "exit status 1"), EngineUp(2, 99, "another"))
    news.end("the supervisor is gone")
    with pytest.raises(EngineStartError, match="the supervisor is gone"):
        await news.word_of(1)


async def test_of_an_engine_that_does_not_come_back_nothing_is_promised() -> None:
    news = EngineNews(client=5, news=[EngineDown(0, "it was killed"), EngineDown(1, "it was killed", comes_back=False)])
    assert SupervisorsRestarts(news, 0).take(0.0) and not SupervisorsRestarts(news, 1).take(0.0)
    news.end("the supervisor is gone")
    assert not SupervisorsRestarts(news, 0).take(0.0)
