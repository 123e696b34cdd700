"""The calls of this process that are open at engine replicas: Ray does not end a replica before its calls are over.

One open call holds a replica for all requests that this process has there. So a request whose engine has a call already
costs Ray nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

LINGER_SECONDS = 1.0  # that a call stays open without requests: the next one may come at once


@dataclass(slots=True, eq=False)
class Hold:
    """A call that is open. engine: the replica. call: the task that waits for its end."""

    engine: str
    ticket: int
    call: asyncio.Future[None]
    num_requests: int = 1
    end: asyncio.TimerHandle | None = None


class Holds:
    """For one event loop.

    over: gets a call that is of no more use. shares: False: each request has a call of its own, as routers want it that
    count calls.
    """

    def __init__(self, over: Callable[[Hold], None], *, shares: bool) -> None:
        self._over = over
        self._shares = shares
        self._shared: dict[str, Hold] = {}  # by engine

    def add(self, engine: str, ticket: int, call: asyncio.Future[None]) -> Hold:
        """The replica has taken this call, for a request."""
        hold = Hold(engine, ticket, call)
        if self._shares:
            self._shared.setdefault(engine, hold)
        return hold

    def share(self, engine: str) -> Hold | None:
        """The call that is open at this engine, now for another request too. None: there is none."""
        hold = self._shared.get(engine)
        if hold is not None:
            hold.num_requests += 1
            if hold.end is not None:
                hold.end.cancel()
                hold.end = None
        return hold

    def leave(self, hold: Hold) -> None:
        """One of its requests is over. To be called once for each."""
        hold.num_requests -= 1
        if hold.num_requests:
            return
        if self._shared.get(hold.engine) is hold:
            hold.end = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._end, hold)
        else:
            self._over(hold)

    def lose(self, hold: Hold) -> None:
        """The call has ended by itself: no further request shares it. Idempotent."""
        if self._shared.get(hold.engine) is hold:
            del self._shared[hold.engine]
        if hold.end is not None:
            hold.end.cancel()
            hold.end = None

    def _end(self, hold: Hold) -> None:
        hold.end = None
        del self._shared[hold.engine]
        self._over(hold)
