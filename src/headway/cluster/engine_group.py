"""A group of servers that lives as one: all start, the dead are started again, all end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from headway.client.restart_budget import RestartBudget
from headway.cluster.group_server import GroupServer, Member

logger = logging.getLogger(__name__)

FIRST_BACKOFF, MOST_BACKOFF = 0.5, 10.0  # seconds before a server that died is started again
_END_S = 15.0  # seconds beyond its grace time that a server may take to end

Tell = Callable[[str, str], None]


class GroupError(RuntimeError):
    """The group cannot go on. The message is one line."""


class GroupStartError(GroupError):
    """A server did not start; the message is what it said."""


class EngineGroup:
    """Servers by their names. For one event loop.

    restarts: how often servers may be started again, all of them together. tell: gets name and line of all that the
    servers print. num_deaths: of servers that were not asked to end.
    """

    def __init__(self, members: Sequence[Member], restarts: RestartBudget, tell: Tell) -> None:
        self.servers = {member.name: _server(member, tell) for member in members}
        self.num_deaths = 0
        self._restarts = restarts
        self._stopping = asyncio.Event()
        self._lives: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all servers. Returns when all take requests. Raises GroupStartError if one of them does not start; then
        `stop` has still to be called, as in all cases."""
        self._lives = [asyncio.create_task(self._keep(server)) for server in self.servers.values()]
        ready = asyncio.create_task(self.wait_ready())
        await asyncio.wait({ready, *self._lives}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            self._raise()

    async def wait_ready(self) -> None:
        """Wait until all servers take requests."""
        while not all(server.ready.is_set() for server in self.servers.values()):
            for server in self.servers.values():
                await server.ready.wait()

    async def run(self) -> None:
        """Go on until `stop`, or until too many servers have died: that raises GroupError."""
        await asyncio.wait(self._lives, return_when=asyncio.FIRST_EXCEPTION)
        self._raise()

    def terminate(self) -> None:
        """Ask all servers to end; asked again, they do not wait for running requests."""
        self._stopping.set()
        for server in self.servers.values():
            server.terminate()

    async def stop(self, grace: float = 0.0) -> None:
        """End all servers. Returns when nothing of them is left. grace: seconds that their requests may go on."""
        self.terminate()
        if not self._lives:
            return
        _, late = await asyncio.wait(self._lives, timeout=grace + _END_S)
        for life in late:
            life.cancel()
        if late:
            logger.warning("%d servers did not end in time and were killed", len(late))
        await asyncio.gather(*self._lives, return_exceptions=True)  # their errors have been raised, or come too late

    def _raise(self) -> None:
        for life in self._lives:
            if life.done() and (error := life.exception()) is not None:
                raise error

    async def _keep(self, server: GroupServer) -> None:
        name, backoff, has_started = server.member.name, FIRST_BACKOFF, False
        while not self._stopping.is_set():
            was_ready = asyncio.create_task(server.ready.wait())
            code = await server.run()
            if was_ready.done():
                has_started, backoff = True, FIRST_BACKOFF
            was_ready.cancel()
            if self._stopping.is_set():
                return
            why = server.complaint or f"exit code {code}"
            if not has_started:
                raise GroupStartError(server.complaint or f"{name} did not start: exit code {code}")
            self.num_deaths += 1
            if not self._restarts.take(time.monotonic()):
                raise GroupError(
                    f"{name} died ({why}), and servers have been started again {self._restarts.most} times "
                    f"within {self._restarts.window / 60:g} minutes: the group ends"
                )
            logger.critical("%s died (%s); it is started again in %g s", name, why, backoff)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff)
            backoff = min(2 * backoff, MOST_BACKOFF)


def _server(member: Member, tell: Tell) -> GroupServer:
    return GroupServer(member, lambda line: tell(member.name, line))
