"""How often an engine may be restarted."""

from __future__ import annotations

from collections import deque

WINDOW = 600.0  # seconds in which restarts are counted


class RestartBudget:
    """At most `most` restarts within any `window` seconds. So an engine that dies at once is not started for ever."""

    def __init__(self, most: int = 0, window: float = WINDOW) -> None:
        if most < 0:
            raise ValueError(f"engine_restarts must be at least 0, got {most}")
        self.most = most
        self.window = window
        self._taken: deque[float] = deque()

    def take(self, now: float) -> bool:
        """Whether one more restart is allowed at the time `now`, in seconds; then it is counted."""
        while self._taken and now - self._taken[0] >= self.window:
            self._taken.popleft()
        if len(self._taken) >= self.most:
            return False
        self._taken.append(now)
        return True
