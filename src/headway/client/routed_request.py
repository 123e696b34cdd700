"""Client requests that another engine may get if the first cannot take them."""

from __future__ import annotations

from collections.abc import Callable

from headway.client.pending import Pending, Update
from headway.client.pending_request import PendingRequest
from headway.errors import EngineDeadError, QueueFullError, ShuttingDownError


class MovableRequest(Pending):
    """It goes to another engine if its engine dies or is full before the first update was handed out: so its client,
    which has seen nothing, sees nothing of that."""

    @staticmethod
    def may_move(error: Exception, *, begun: bool) -> bool:
        """**The one rule of retries.** begun: whether an update was handed out."""
        is_of_the_engine = isinstance(error, (EngineDeadError, QueueFullError))
        return is_of_the_engine and not isinstance(error, ShuttingDownError) and not begun


class RoutedRequest(MovableRequest):
    """A request that is at an engine from the beginning. Each engine gets it once.

    first: the request at its first engine. another: gives it to the next engine; None: there is none.
    begun: called once for each of these engines: it need not compute the prompt any more. True: it has failed.
    """

    def __init__(
        self, first: PendingRequest, another: Callable[[], PendingRequest | None], begun: Callable[[bool], None]
    ) -> None:
        self._pending = first
        self._another = another
        self._begun = begun
        self._has_begun = self._closed = False

    async def __anext__(self) -> list[Update]:
        while True:
            try:
                updates = await anext(self._pending)
            except (EngineDeadError, QueueFullError) as error:
                if not self.may_move(error, begun=self._has_begun):
                    raise
                self._begun(isinstance(error, EngineDeadError))
                pending = self._another()
                if pending is None:
                    self._has_begun = True
                    raise
                self._pending = pending
            else:
                self._stay()
                return updates

    @property
    def accepted(self) -> bool:
        return self._pending.accepted

    @property
    def complete(self) -> bool:
        return self._closed or self._pending.complete

    def close(self) -> None:
        self._stay()
        self._closed = True
        self._pending.close()

    def _stay(self) -> None:
        """It has begun, or is over: it goes to no other engine."""
        if not self._has_begun:
            self._has_begun = True
            self._begun(False)
