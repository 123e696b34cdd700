"""A client request that is given to an engine when it is first read, because the choice takes a turn of Ray."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from headway.client.pending import Update
from headway.client.pending_request import PendingRequest
from headway.client.routed_request import MovableRequest
from headway.errors import EngineDeadError, QueueFullError

logger = logging.getLogger(__name__)

MOST_PLACES = 3  # engines that get one request, one after another


class Place(NamedTuple):
    """Where a request is. leave: the request needs the engine no more; True: the engine has failed. begun: its first
    tokens are there."""

    engine: str
    pending: PendingRequest
    begun: Callable[[], None]
    leave: Callable[[bool], None]


class PlacedRequest(MovableRequest):
    """A request that Ray places, at most MOST_PLACES times. It holds its engine until it is closed.

    place: gives the request to an engine. May be cancelled. over: called once, when the request is.
    """

    def __init__(self, place: Callable[[], Awaitable[Place]], over: Callable[[], None]) -> None:
        self._give = place
        self._over = over
        self._place: Place | None = None
        self._num_places = 0
        self._has_begun = False
        self._closed = False

    async def __anext__(self) -> list[Update]:
        while True:
            if self._closed:
                raise StopAsyncIteration
            if self._place is None:
                self._num_places += 1
                self._place = await self._give()
            try:
                updates = await anext(self._place.pending)
            except (EngineDeadError, QueueFullError) as error:
                engine = self._place.engine
                self._leave(failed=isinstance(error, EngineDeadError))
                if not self.may_move(error, begun=self._has_begun) or self._num_places >= MOST_PLACES:
                    raise
                logger.info("engine %s cannot (%s); a request that had not begun goes to another", engine, error)
                continue
            if not self._has_begun:
                self._has_begun = True
                self._place.begun()
            return updates

    @property
    def accepted(self) -> bool:
        return self._closed or (self._place is not None and self._place.pending.accepted)

    @property
    def complete(self) -> bool:
        return self._closed or (self._place is not None and self._place.pending.complete)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._leave()
            self._over()

    def _leave(self, *, failed: bool = False) -> None:
        if self._place is not None:
            place, self._place = self._place, None
            place.pending.close()
            place.leave(failed)
