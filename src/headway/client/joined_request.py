"""A client request whose prompts are at several engines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from headway.client.pending_request import Update

if TYPE_CHECKING:
    from headway.client.engines import Pending


class Part(NamedTuple):
    """Prompts that are together at an engine. first: the index of the first of them in the client request."""

    pending: Pending
    first: int


def in_parts(num_prompts: int, num_engines: int) -> list[range]:
    """The prompts of a client request, shared out: neighbours stay together, since they often begin alike. At least one
    part, and no part without prompts."""
    num_parts = max(1, min(num_prompts, num_engines))
    ends = [num_prompts * part // num_parts for part in range(num_parts + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


class JoinedRequest:
    """Iterates as `PendingRequest` does: a refusal of any engine comes before any update, and after an error all parts
    are aborted."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._reading = {asyncio.ensure_future(anext(part.pending)): part for part in parts}
        self._held: list[Update] = []

    def __aiter__(self) -> JoinedRequest:
        return self

    async def __anext__(self) -> list[Update]:
        while self._reading:
            done, _ = await asyncio.wait(self._reading, return_when=asyncio.FIRST_COMPLETED)
            for reading in done:
                self._take(reading)
            if self._held and self.accepted:
                break
        if not self._held:
            raise StopAsyncIteration
        updates, self._held = self._held, []
        return updates

    def _take(self, reading: asyncio.Task[list[Update]]) -> None:
        part = self._reading.pop(reading)
        try:
            updates = reading.result()
        except StopAsyncIteration:
            return
        except Exception:
            self.close()
            raise
        self._held += (replace(update, prompt_index=part.first + update.prompt_index) for update in updates)
        self._reading[asyncio.ensure_future(anext(part.pending))] = part

    @property
    def accepted(self) -> bool:
        """See `Pending`."""
        return all(part.pending.accepted for part in self._parts)

    @property
    def complete(self) -> bool:
        """Whether no more updates will come. Updates that have come may still have to be fetched."""
        return all(part.pending.complete for part in self._parts)

    def __enter__(self) -> JoinedRequest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abort the answers that are unfinished. Idempotent."""
        for reading in self._reading:
            reading.cancel()
        self._reading.clear()
        for part in self._parts:
            part.pending.close()
