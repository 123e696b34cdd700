"""Which fault a server suffered when: it excuses errors of this server, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["API process killed", "engine killed", "paused"]
SLACK = 2.0  # seconds after the end of a disturbance, for what was on its way


@dataclass(slots=True)
class Disturbance:
    """until: seconds on the clock of the run; inf while it goes on."""

    server: str
    kind: Kind
    since: float
    until: float = math.inf


class Disturbances:
    """All of a run."""

    def __init__(self) -> None:
        self._all: list[Disturbance] = []

    def begin(self, server: str, kind: Kind, now: float) -> Disturbance:
        """A fault that has its effect from now on, until `until` is set."""
        disturbance = Disturbance(server, kind, now)
        self._all.append(disturbance)
        return disturbance

    def during(self, server: str, started: float, ended: float) -> list[Disturbance]:
        """The disturbances of this server at any moment from `started` to `ended`."""
        return [
            one for one in self._all if one.server == server and one.since <= ended and started <= one.until + SLACK
        ]
