"""From the start of a group, until a signal or the end of its restarts, to the end of all its processes."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Protocol

from headway.cluster.group import GroupError, GroupStartError
from headway.cluster.group_server import Tell
from headway.logs import named
from headway.server.serve import BAD_START, stop_signals
from headway.server.settings import ServerSettings

logger = logging.getLogger(__name__)

BROKEN = 1  # exit code


class Lives(Protocol):
    """A `Group`, or several of them. See there."""

    async def start(self) -> None: ...

    async def run(self) -> None: ...

    def terminate(self) -> None: ...

    async def stop(self, grace: float = 0.0) -> None: ...


async def keep_alive(group: Lives, grace: float, started: Callable[[], None]) -> int:
    """Serve until a signal comes; returns the exit code: 0, 1 if too many processes have died, 2 if one does not start.

    grace: seconds that running requests may go on after the signal. started: called once, when all take requests.
    """
    with stop_signals() as stop:
        life = asyncio.create_task(_live(group, started))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({life, stopped}, return_when=asyncio.FIRST_COMPLETED)
        broken = life.exception() if life.done() else None
        if not life.done():
            life.cancel()
            logger.info("all stop: running requests may go on for %g s", grace)
        stop.clear()
        ending = asyncio.create_task(group.stop(grace))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({ending, stopped}, return_when=asyncio.FIRST_COMPLETED)
        group.terminate()  # a second signal ends the grace time at once; after the end of all it does nothing
        await ending
        stopped.cancel()
    if broken is None:
        return 0
    if not isinstance(broken, GroupError):
        raise broken
    print(f"headway: {broken}", file=sys.stderr)
    return BAD_START if isinstance(broken, GroupStartError) else BROKEN


async def _live(group: Lives, started: Callable[[], None]) -> None:
    await group.start()
    started()
    await group.run()


def teller(settings: ServerSettings, width: int) -> Tell:
    """Writes the lines of processes to standard error, with their names, in a column of `width` characters."""
    # A logger, since it goes on when the reader has gone.
    lines = logging.getLogger(f"{__name__}.lines")
    lines.propagate = False
    lines.setLevel(logging.INFO)
    if not lines.handlers:
        lines.addHandler(logging.StreamHandler())
    return lambda name, line: lines.info("%s", named(name.ljust(width), line, settings.log_format))
