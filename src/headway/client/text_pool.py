"""Where work on texts is done, by its size: on the event loop, or on a thread of its own lane."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

SHORT = 4096  # characters or bytes; work on them takes about a millisecond
MEDIUM = 65_536


class TextPool:
    """Tokenising, rendering and reading of long texts. Each of the two lanes has one thread: what is short never waits,
    and what is of middle size never waits behind what is long. Cancelling a call that waits takes it out of its lane.
    """

    def __init__(self) -> None:
        self._medium = ThreadPoolExecutor(1, thread_name_prefix="headway-text")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="headway-long-text")

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """Return or raise what `work` returns or raises. size: characters, or bytes, that it works on."""
        if size <= SHORT:
            return work()
        lane = self._medium if size <= MEDIUM else self._long
        return await asyncio.get_running_loop().run_in_executor(lane, work)

    def close(self) -> None:
        """Work that waits is dropped; work in progress ends by itself."""
        for lane in (self._medium, self._long):
            lane.shutdown(wait=False, cancel_futures=True)
