"""How often an engine may be restarted."""

from __future__ import annotations

from collections import deque
from typing import Protocol

WINDOW = 600.0  # seconds in which restarts are counted


class Restarts(Protocol):
    """Says whether an engine that died may be started again. As text: the rule."""

    def take(self, now: float) -> bool:
        """Whether one more restart is allowed at the time `now`, in seconds; then it is counted."""


class RestartBudget(Restarts):
    """At most `most` restarts within any `window` seconds. So an engine that dies at once is not started for ever."""

    def __init__(self, most: int = 0, window: float = WINDOW) -> None:
        if most < 0:
            raise ValueError(f"engine_restarts must be at least 0, got {most}")
        self.most = most
        self.window = window
        self._taken: deque[float] = deque()

    def __str__(self) -> str:
        return f"engine_restarts {self.most} in {self.window:g} s"

    def allows(self, now: float) -> bool:
        """Whether one more restart is allowed at the time `now`, in seconds."""
        while self._taken and now - self._taken[0] >= self.window:
            self._taken.popleft()
        return len(self._taken) < self.most

    def take(self, now: float) -> bool:
        if not self.allows(now):
            return False
        self._taken.append(now)
        return True
