"""Time that passes from one event to the next, without waiting."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class VirtualTime:
    """now: seconds. Events of the same moment happen in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def __call__(self) -> float:
        """It is a clock."""
        return self.now

    def at(self, moment: float, deed: Callable[[], None]) -> None:
        """Do this at that moment; now, after what is planned for now, if the moment is past."""
        heapq.heappush(self._events, (max(moment, self.now), next(self._numbers), deed))

    def after(self, seconds: float, deed: Callable[[], None]) -> None:
        """Do this so many seconds from now."""
        self.at(self.now + seconds, deed)

    def run(self, is_over: Callable[[], bool]) -> None:
        """Until `is_over` says so. Raises RuntimeError if nothing is planned any more before that."""
        while not is_over():
            if not self._events:
                raise RuntimeError(f"nothing happens any more after {self.now:g} s")
            self.now, _, deed = heapq.heappop(self._events)
            deed()
