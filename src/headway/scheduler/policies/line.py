"""The line: in which order requests are served."""

from __future__ import annotations

from typing import Protocol

from headway.config import SchedulerConfig
from headway.request import Request


class Line(Protocol):
    """Gives each request its rank, once and for all: queue and slot table keep it."""

    def rank(self, request: Request) -> float:
        """Lower is served first; among equals, whoever came first."""


class StrictPriority:
    """By priority alone. While there is work of a higher priority, lower ones wait, for ever if need be."""

    def rank(self, request: Request) -> float:
        """The priority."""
        return float(request.priority)


class AgedPriority:
    """By priority and waiting time: so many seconds of waiting are worth one level of priority.

    At time t a request is worth its priority less (t - arrival) / seconds_per_level. The part with t in it is the same
    for everybody, so it decides nothing, and what remains is fixed at arrival:

        priority + arrival / seconds_per_level

    Two requests keep their order however long they wait: no queue has to be sorted anew as time passes, and nobody
    needs a clock. A request is passed only by those that arrive within `seconds_per_level` x the difference of their
    priorities; hence nobody starves.
    """

    def __init__(self, seconds_per_level: float) -> None:
        self._seconds_per_level = seconds_per_level

    def rank(self, request: Request) -> float:
        """Priority, in levels, as if everybody had come at the same time."""
        return request.priority + request.arrival_time / self._seconds_per_level


def line_of(config: SchedulerConfig) -> Line:
    """The order that is configured."""
    return AgedPriority(config.ageing_seconds) if config.ageing_seconds > 0 else StrictPriority()
