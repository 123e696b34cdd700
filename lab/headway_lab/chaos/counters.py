"""Metrics that count, summed over the lives of servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence

import httpx

from headway_lab.chaos.leftovers import metric

_EVERY_S = 1.0


class Counters:
    """Reads counters every second. What a server counts in the last second before its death is lost.

    urls: of the servers. names: of the metrics. sums: by these names, what was counted between `start` and `stop`.
    """

    def __init__(self, http: httpx.AsyncClient, urls: Sequence[str], names: Sequence[str]) -> None:
        self.sums: Counter[str] = Counter()
        self._http = http
        self._urls = urls
        self._names = names
        self._last: dict[tuple[str, str], float] = {}
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._watch(url)) for url in self._urls]

    async def stop(self) -> None:
        """Read once more, and end."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def _watch(self, url: str) -> None:
        while True:
            is_last = self._stopping.is_set()
            with contextlib.suppress(httpx.TransportError):  # it is being started again
                for name in self._names:
                    self.note(url, name, await metric(self._http, url, name))
            if is_last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _EVERY_S)

    def note(self, url: str, name: str, value: float) -> None:
        """A value that was read. If it is lower than the last one, the server has a new life."""
        last = self._last.get((url, name), 0.0)
        self.sums[name] += value - last if value >= last else value  # type: ignore[assignment]
        self._last[url, name] = value
