"""A group of processes that lives as one: all start, the dead are started again, all end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from headway.client.restart_budget import RestartBudget

logger = logging.getLogger(__name__)

FIRST_BACKOFF, MOST_BACKOFF = 0.5, 10.0  # seconds before a process that died is started again
_END_S = 15.0  # seconds beyond its grace time that a process may take to end


class GroupError(RuntimeError):
    """The group cannot go on. The message is one line."""


class GroupStartError(GroupError):
    """A process did not start; the message is what it said."""


class Kept(Protocol):
    """A process that a group keeps alive: a server, or an engine.

    name: for people. ready: set while it does its work. complaint: why it did not start, as it said; "": it said
    nothing.
    """

    name: str
    ready: asyncio.Event
    complaint: str

    async def run(self) -> str:
        """One life of the process. Returns how it ended, in a few words, when nothing of it is left; so also if it is
        cancelled."""

    def terminate(self) -> None:
        """Ask the process to end, if there is one; asked again, it waits neither for running requests nor, if it is an
        engine, for its step."""

    def given_up(self, why: str) -> None:  # noqa: ARG002
        """It has died, and is not started again, while others of its group go on."""
        return


K = TypeVar("K", bound=Kept)


class Group(Generic[K]):
    """Processes of one kind. For one event loop.

    restarts: how often they may be started again, all of them together. least: with fewer processes the group does not
    go on; None: it needs all. num_deaths: of processes that were not asked to end.
    """

    def __init__(self, processes: Sequence[K], restarts: RestartBudget, *, least: int | None = None) -> None:
        self.processes = {process.name: process for process in processes}
        self._num_left = len(processes)
        self._least = self._num_left if least is None else least
        self.num_deaths = 0
        self._restarts = restarts
        self._stopping = asyncio.Event()
        self._asked_again = asyncio.Event()
        self._lives: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all. Returns when all take requests. Raises GroupStartError if one of them does not start; then
        `stop` has still to be called, as in all cases."""
        self._lives = [asyncio.create_task(self._keep(process)) for process in self.processes.values()]
        ready = asyncio.create_task(self.wait_ready())
        await asyncio.wait({ready, *self._lives}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            self._raise()

    async def wait_ready(self) -> None:
        """Wait until all are ready."""
        while not all(process.ready.is_set() for process in self.processes.values()):
            for process in self.processes.values():
                await process.ready.wait()

    async def run(self) -> None:
        """Go on until `stop`, or until too many have died: that raises GroupError."""
        await asyncio.wait(self._lives, return_when=asyncio.FIRST_EXCEPTION)
        self._raise()

    def terminate(self) -> None:
        """Ask all to end; asked again, they do not wait for running requests, and `stop` does not either."""
        if self._stopping.is_set():
            self._asked_again.set()
        self._stopping.set()
        for process in self.processes.values():
            process.terminate()

    async def stop(self, grace: float = 0.0) -> None:
        """End all. Returns when nothing of them is left. grace: seconds that their requests may go on."""
        self.terminate()
        if not self._lives:
            return
        again = asyncio.ensure_future(self._asked_again.wait())
        ended = asyncio.gather(*self._lives, return_exceptions=True)  # their errors have been raised, or come too late
        either: set[asyncio.Future[Any]] = {again, ended}
        await asyncio.wait(either, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        _, late = await asyncio.wait(self._lives, timeout=_END_S)
        for life in late:
            life.cancel()
        if late:
            logger.warning("%d processes did not end in time and were killed", len(late))
        await ended

    def _raise(self) -> None:
        for life in self._lives:
            if life.done() and (error := life.exception()) is not None:
                raise error

    async def _keep(self, process: K) -> None:
        name, backoff, has_started = process.name, FIRST_BACKOFF, False
        while not self._stopping.is_set():
            was_ready = asyncio.create_task(process.ready.wait())
            ended = await process.run()
            if was_ready.done():
                has_started, backoff = True, FIRST_BACKOFF
            was_ready.cancel()
            if self._stopping.is_set():
                return
            why = process.complaint or ended
            if not has_started:
                raise GroupStartError(process.complaint or f"{name} did not start: {ended}")
            self.num_deaths += 1
            if not self._restarts.take(time.monotonic()):
                reason = (
                    f"{name} died ({why}), and {self._restarts.most} restarts within {self._restarts.window / 60:g} "
                    "minutes are all that is allowed"
                )
                self._num_left -= 1
                if self._num_left < self._least:
                    raise GroupError(reason)
                logger.critical("%s; without it there are %d, which go on", reason, self._num_left)
                process.given_up(why)
                return
            logger.critical("%s died (%s); it is started again in %g s", name, why, backoff)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff)
            backoff = min(2 * backoff, MOST_BACKOFF)
