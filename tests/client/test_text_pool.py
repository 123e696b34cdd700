"""Short work on texts never waits, work of middle size never waits for long work, and abandoned work is not done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from headway.client.text_pool import MEDIUM, SHORT, TextPool

PATIENCE = 60.0  # seconds
LONG = MEDIUM + 1


@pytest.fixture
async def pool() -> AsyncIterator[TextPool]:
    pool = TextPool()
    yield pool
    pool.close()


@pytest.fixture
async def free() -> AsyncIterator[threading.Event]:
    free = threading.Event()
    yield free
    free.set()


def block(pool: TextPool, size: int, free: threading.Event) -> asyncio.Future[bool]:
    return asyncio.ensure_future(pool.run(size, lambda: free.wait(PATIENCE)))


async def test_short_work_is_done_at_once_whatever_waits(pool: TextPool, free: threading.Event) -> None:
    blocked = [block(pool, size, free) for size in (SHORT + 1, LONG)]
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        assert await pool.run(SHORT, lambda: threading.current_thread()) is threading.current_thread()
    assert not any(one.done() for one in blocked)


async def test_work_of_middle_size_does_not_wait_for_long_work(pool: TextPool, free: threading.Event) -> None:
    blocked = [block(pool, LONG, free) for _ in range(8)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(pool.run(MEDIUM, lambda: "done"), 5) == "done"
    assert not any(one.done() for one in blocked)


@pytest.mark.parametrize("size", [MEDIUM, LONG])
async def test_work_that_is_abandoned_while_it_waits_is_not_done(
    pool: TextPool, free: threading.Event, size: int
) -> None:
    done: list[int] = []
    first = block(pool, size, free)
    left = [asyncio.ensure_future(pool.run(size, lambda number=number: done.append(number))) for number in range(8)]
    stays = asyncio.ensure_future(pool.run(size, lambda: done.append(8)))
    await asyncio.sleep(0)
    for one in left:
        one.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    free.set()
    async with asyncio.timeout(PATIENCE):
        await first
        await stays
    assert done == [8]


async def test_work_in_a_lane_is_done_off_the_event_loop_and_its_error_comes_back(pool: TextPool) -> None:
    def fail() -> None:
        raise ValueError(threading.current_thread().name)

    for size, lane in ((MEDIUM, "headway-text"), (LONG, "headway-long-text")):
        with pytest.raises(ValueError, match=lane):
            await pool.run(size, fail)


async def test_closing_drops_what_waits(free: threading.Event) -> None:
    pool = TextPool()
    first = block(pool, LONG, free)
    await asyncio.sleep(0)
    done: list[int] = []
    waits = asyncio.ensure_future(pool.run(LONG, lambda: done.append(1)))
    await asyncio.sleep(0)
    pool.close()
    free.set()
    assert await asyncio.wait_for(first, PATIENCE) and not done
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waits, PATIENCE)
