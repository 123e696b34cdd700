"""A client request that is given to an engine when it is first read, because the choice takes a turn of Ray."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import NamedTuple

from headway.client.pending_request import PendingRequest, Update
from headway.errors import EngineDeadError, ShuttingDownError

logger = logging.getLogger(__name__)

MOST_PLACES = 3  # engines that get one request, one after another


class Place(NamedTuple):
    """Where a request is. leave: tells the engine replica that the request is over; True: the engine has failed.
    begun: its first tokens are there."""

    engine: str
    pending: PendingRequest
    begun: Callable[[], None]
    leave: Callable[[bool], None]


class PlacedRequest:
    """Iterates as `PendingRequest` does. If its engine dies before the first update was handed out, another engine gets
    it: its client, which has seen nothing, sees nothing of that.

    place: gives the request to an engine. May be cancelled. over: called once, when the request is.
    """

    def __init__(self, place: Callable[[], Awaitable[Place]], over: Callable[[], None]) -> None:
        self._give = place
        self._over = over
        self._place: Place | None = None
        self._num_places = 0
        self._has_begun = False
        self._closed = False

    def __aiter__(self) -> PlacedRequest:
        return self

    async def __anext__(self) -> list[Update]:
        while True:
            if self._closed:
                raise StopAsyncIteration
            if self._place is None:
                self._num_places += 1
                self._place = await self._give()
            try:
                updates = await anext(self._place.pending)
            except StopAsyncIteration:
                self.close()
                raise
            except EngineDeadError as error:
                engine = self._place.engine
                self._leave(failed=True)
                if isinstance(error, ShuttingDownError) or self._has_begun or self._num_places >= MOST_PLACES:
                    raise
                logger.info("engine %s has died (%s); a request that had not begun goes to another", engine, error)
                continue
            if not self._has_begun:
                self._has_begun = True
                self._place.begun()
            return updates

    @property
    def complete(self) -> bool:
        """Whether no more updates will come. Updates that have come may still have to be fetched."""
        return self._closed or (self._place is not None and self._place.pending.complete)

    def __enter__(self) -> PlacedRequest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abort the answers that are unfinished. Idempotent."""
        if not self._closed:
            self._closed = True
            self._leave()
            self._over()

    def _leave(self, *, failed: bool = False) -> None:
        if self._place is not None:
            place, self._place = self._place, None
            place.pending.close()
            place.leave(failed)
