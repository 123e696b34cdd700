"""What the server tells of hold-ups of its event loop."""

from __future__ import annotations

import asyncio
import time

from headway.server.metrics.loop_monitor import WINDOW, LoopMonitor
from tests.server.conftest import Api


def test_the_longest_hold_up_of_the_last_minute_is_told() -> None:
    now = 0.0
    monitor = LoopMonitor(clock=lambda: now)
    for at, seconds in ((0.0, 0.5), (10.0, 0.1), (20.0, 0.2), (30.0, 0.05)):
        now = at
        monitor.note(seconds)
    told = []
    for at in (30.0, WINDOW + 5, WINDOW + 15, WINDOW + 25, WINDOW + 35):
        now = at
        told.append(monitor.longest)
    assert told == [0.5, 0.2, 0.2, 0.05, 0.0]


async def test_a_turn_that_blocks_is_seen() -> None:
    monitor = LoopMonitor()
    watching = asyncio.create_task(monitor.watch())
    await asyncio.sleep(0)
    time.sleep(0.2)
    while not monitor.longest:
        await asyncio.sleep(0.01)
    watching.cancel()
    assert monitor.longest > 0.1


async def test_it_is_on_the_page_of_metrics(api: Api) -> None:
    assert "headway:event_loop_longest_turn_seconds{" in (await api.get("/metrics")).text
