"""A client request that another engine may get if the first cannot take it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from headway.client.pending_request import PendingRequest, Update
from headway.errors import EngineDeadError, QueueFullError, ShuttingDownError

Submit = Callable[[], PendingRequest]


class RoutedRequest:
    """Iterates as `PendingRequest` does. It goes to the next engine if its engine dies or is full before the first
    update was handed out: so its client, which has seen nothing, sees nothing of that. **This is the one place where a
    retry is decided.** Each engine gets the request once.

    first: the request at its first engine. another: gives it to the next engine; None: there is none.
    begun: called once for each of these engines: it need not compute the prompt any more. True: it has failed.
    """

    def __init__(
        self, first: PendingRequest, another: Callable[[], PendingRequest | None], begun: Callable[[bool], None]
    ) -> None:
        self._pending = first
        self._another = another
        self._begun = begun
        self._may_move = True

    def __aiter__(self) -> RoutedRequest:
        return self

    async def __anext__(self) -> list[Update]:
        while True:
            try:
                updates = await anext(self._pending)
            except ShuttingDownError:
                raise
            except (EngineDeadError, QueueFullError) as error:
                if not self._may_move:
                    raise
                self._begun(isinstance(error, EngineDeadError))
                pending = self._another()
                if pending is None:
                    self._may_move = False
                    raise
                self._pending = pending
            else:
                self._stay()
                return updates

    @property
    def complete(self) -> bool:
        """Whether no more updates will come. Updates that have come may still have to be fetched."""
        return self._pending.complete

    def __enter__(self) -> RoutedRequest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abort the answers that are unfinished. Idempotent."""
        self._stay()
        self._pending.close()

    def _stay(self) -> None:
        """It has begun, or is over: it goes to no other engine."""
        if self._may_move:
            self._may_move = False
            self._begun(False)
