"""The line: in which order requests are served."""

from __future__ import annotations

from typing import Protocol

from headway.config import SchedulerConfig
from headway.request import Request


class Line(Protocol):
    """Gives each request its rank once; queue and slot table keep it."""

    def rank(self, request: Request) -> float:
        """Lower is served first; among equals, the request that came first."""


class StrictPriority:
    """By priority alone. While there is work of a higher priority, lower ones wait, for ever if need be."""

    def rank(self, request: Request) -> float:
        """The priority."""
        return float(request.priority)


class AgedPriority:
    """By priority and waiting time: so many seconds of waiting are worth one level of priority.

    At time t a request is worth its priority less (t - arrival) / seconds_per_level. The part with t in it is the same
    for all requests, so it decides nothing, and the rest is fixed at arrival:

        priority + arrival / seconds_per_level

    Two requests keep their order however long they wait: no queue is sorted anew as time passes, and no clock is
    needed. A request is passed only by requests that arrive within `seconds_per_level` x the difference of their
    priorities; so no request starves.
    """

    def __init__(self, seconds_per_level: float) -> None:
        self._seconds_per_level = seconds_per_level

    def rank(self, request: Request) -> float:
        """Priority, in levels, as if all requests had come at the same time."""
        return request.priority + request.arrival_time / self._seconds_per_level


def line_of(config: SchedulerConfig) -> Line:
    """The order that is configured."""
    return AgedPriority(config.ageing_seconds) if config.ageing_seconds > 0 else StrictPriority()
