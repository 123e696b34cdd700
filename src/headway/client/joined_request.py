"""A client request whose prompts are at several engines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from headway.client.pending import Pending, Update


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


class JoinedRequest(Pending):
    """Reads all parts at once, and keeps updates back until every part has been accepted. After an error all parts are
    aborted."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._reading = {asyncio.ensure_future(anext(part.pending)): part for part in parts}
        self._held: list[Update] = []

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
        return all(part.pending.accepted for part in self._parts)

    @property
    def complete(self) -> bool:
        return all(part.pending.complete for part in self._parts)

    def close(self) -> None:
        for reading in self._reading:
            reading.cancel()
        self._reading.clear()
        for part in self._parts:
            part.pending.close()
