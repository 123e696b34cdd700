"""A request that is given to an engine when it is first read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headway.client.pending import Update
from headway.cluster.ray.placed_request import MOST_PLACES, Place, PlacedRequest
from headway.errors import EngineDeadError, QueueFullError, ShuttingDownError


def update(text: str) -> list[Update]:
    return [Update(0, SimpleNamespace(text=text))]  # type: ignore[arg-type]


class Pending:
    """Hands out what a test says; an exception is raised."""

    def __init__(self, *items: object) -> None:
        self._items = iter(items)
        self.complete = False
        self.closed = False

    async def __anext__(self) -> list[Update]:
        item = next(self._items, None)
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return update(str(item))

    def close(self) -> None:
        self.closed = True


class Engines:
    """Gives a request to one engine after another."""

    def __init__(self, *pendings: Pending | Exception) -> None:
        self.pendings = pendings
        self.log: list[str] = []
        self._next = 0
        self.request = PlacedRequest(self._give, lambda: self.log.append("over"))

    async def _give(self) -> Place:
        pending, number = self.pendings[self._next], self._next
        self._next += 1
        if isinstance(pending, Exception):
            raise pending
        self.log.append(f"place {number}")
        return Place(
            str(number),
            pending,  # type: ignore[arg-type]
            lambda: self.log.append("begun"),
            lambda failed: self.log.append(f"leave {number}{' failed' if failed else ''}"),
        )

    async def read(self) -> str:
        text = ""
        with self.request:
            async for updates in self.request:
                text += "".join(one.output.text for one in updates)
        return text


async def test_it_is_placed_when_it_is_read_and_left_when_it_is_closed() -> None:
    """Not before: a prefill engine is held for as long as its blocks are read."""
    engines = Engines(Pending("a", "b"))
    assert engines.log == []
    with engines.request:
        assert len([update async for update in engines.request]) == 2
        assert engines.log == ["place 0", "begun"]
    assert engines.log == ["place 0", "begun", "leave 0", "over"]


async def test_an_engine_that_dies_before_the_first_word_is_not_noticed_by_the_client() -> None:
    engines = Engines(Pending(EngineDeadError("killed")), Pending("a"))
    assert await engines.read() == "a"
    assert engines.log == ["place 0", "leave 0 failed", "place 1", "begun", "leave 1", "over"]


async def test_an_engine_that_is_full_is_not_noticed_by_the_client_either() -> None:
    engines = Engines(Pending(QueueFullError("full")), Pending("a"))
    assert await engines.read() == "a"
    assert engines.log == ["place 0", "leave 0", "place 1", "begun", "leave 1", "over"]


async def test_after_the_first_word_the_error_is_the_end() -> None:
    engines = Engines(Pending("a", EngineDeadError("killed")), Pending("b"))
    with pytest.raises(EngineDeadError):
        await engines.read()
    assert engines.log == ["place 0", "begun", "leave 0 failed", "over"]


async def test_a_server_that_stops_does_not_try_again() -> None:
    engines = Engines(Pending(ShuttingDownError("stop")), Pending("b"))
    with pytest.raises(ShuttingDownError):
        await engines.read()
    assert "place 1" not in engines.log


async def test_it_goes_to_a_bounded_number_of_engines() -> None:
    engines = Engines(*(Pending(EngineDeadError("killed")) for _ in range(MOST_PLACES + 1)))
    with pytest.raises(EngineDeadError):
        await engines.read()
    assert engines.log.count("over") == 1
    assert [line for line in engines.log if line.startswith("place")] == [f"place {i}" for i in range(MOST_PLACES)]


async def test_no_engine_has_room() -> None:
    engines = Engines(QueueFullError("full"))
    with pytest.raises(QueueFullError):
        await engines.read()
    assert engines.log == ["over"]


async def test_a_client_that_leaves_early_ends_it_at_the_engine_once() -> None:
    pending = Pending("a", "b")
    engines = Engines(pending)
    await anext(engines.request)
    engines.request.close()
    engines.request.close()
    assert pending.closed and engines.log == ["place 0", "begun", "leave 0", "over"]
