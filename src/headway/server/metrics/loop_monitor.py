"""How long the event loop is held up: by one long turn, or by another thread that keeps the interpreter."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

INTERVAL = 0.02  # seconds between two looks; a turn that is shorter may pass unseen
WINDOW = 60.0  # seconds that a hold-up is told of
LONGEST_TURN = (
    "event_loop_longest_turn_seconds",
    f"The longest time in the last {WINDOW:g} s that the server's event loop was held up.",
)


class LoopMonitor:
    """Wakes up every `INTERVAL` and notes how late.

    clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Time and length of hold-ups; each is longer than all that came after it.
        self._longest: deque[tuple[float, float]] = deque()

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            due = self._clock() + INTERVAL
            await asyncio.sleep(INTERVAL)
            self.note(max(0.0, self._clock() - due))

    def note(self, seconds: float) -> None:
        """The loop was held up so long just now."""
        while self._longest and self._longest[-1][1] <= seconds:
            self._longest.pop()
        self._longest.append((self._clock(), seconds))
        self._drop_old()

    @property
    def longest(self) -> float:
        """Seconds; the longest hold-up of the last `WINDOW`."""
        self._drop_old()
        return self._longest[0][1] if self._longest else 0.0

    def _drop_old(self) -> None:
        while self._longest and self._longest[0][0] < self._clock() - WINDOW:
            self._longest.popleft()
