"""One client request in progress, as the API process holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from headway.outputs import RequestDelta, RequestOutput
from headway.request import FinishReason


class RequestFailedError(RuntimeError):
    """An accepted request could not be completed. HTTP 500."""


@dataclass(frozen=True, slots=True)
class Event:
    """What prompt `prompt_index` of a client request has brought: a delta when streaming, else the complete output."""

    prompt_index: int
    output: RequestDelta | RequestOutput


class PendingRequest:
    """One client request in progress: one or more prompts, each with `sampling.n` answers, that share their fate.

    Iterating gives lists of events in order and ends when every answer is complete. It raises RequestError,
    DuplicateRequestError, QueueFullError, EnginePausedError or EngineDeadError if the engine refuses or is shut down,
    RequestFailedError if an answer ends in an error; the rest is aborted then. An answer that a pause cuts short is
    complete, with finish_reason "abort". Until a group of several is known to be accepted whole, no event is shown.

    release: called when no more events are wanted. The client calls `take`, `accept` and `fail`.
    """

    def __init__(
        self,
        release: Callable[[PendingRequest], None],
        first_uid: int,
        request_ids: Sequence[str],
        *,
        accepted: bool,
    ) -> None:
        self._release = release
        self.first_uid = first_uid  # by which the engine names the group
        self.request_ids = tuple(request_ids)  # of the prompts, in order
        self._unfinished = set(request_ids)
        self._accepted = accepted
        self._events: list[Event] = []
        self._error: Exception | None = None
        self._wake = asyncio.Event()

    def __aiter__(self) -> PendingRequest:
        return self

    async def __anext__(self) -> list[Event]:
        while True:
            if self._error is not None:
                raise self._error
            if self._accepted and self._events:
                events, self._events = self._events, []
                return events
            if self.complete:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()

    @property
    def complete(self) -> bool:
        """Whether nothing is to come any more; what has come may still have to be fetched."""
        return self._accepted and not self._unfinished

    def __enter__(self) -> PendingRequest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abort what is unfinished. Idempotent."""
        self._release(self)

    # -- what the client tells it

    def take(self, event: Event) -> None:
        """A prompt has something new. An abort before the group is accepted may belong to a refusal on its way."""
        failure = _failure_of(event.output)
        if failure is not None:
            self.fail(failure)
            return
        self._events.append(event)
        if event.output.finished:
            self._unfinished.discard(event.output.request_id)
        self._wake.set()

    def accept(self) -> None:
        """The group was accepted whole."""
        self._accepted = True
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """Iterating raises this error from now on. The first one stays."""
        if self._error is None:
            self._error = error
        self._wake.set()


def _failure_of(output: RequestDelta | RequestOutput) -> Exception | None:
    answers = [output] if isinstance(output, RequestDelta) else output.outputs
    for answer in answers:
        if answer.finish_reason is FinishReason.ERROR:
            return RequestFailedError(answer.error or "the request failed")
    return None
