"""A stream's chunks are made in turns of bounded work, however much has come at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from headway.client.engine_client import Update
from headway.outputs import RequestDelta, RequestMetrics
from headway.server import generate
from headway.server.completions import CompletionFace
from headway.server.generate import Prompt

MOST = 512  # chunks in one turn


def update(number: int) -> Update:
    return Update(0, RequestDelta("a", 0, str(number), [1], None, None, None, None, number, 0, False, RequestMetrics()))


class CountingFace(CompletionFace):
    """Counts the chunks of each turn of the event loop."""

    def __init__(self) -> None:
        super().__init__(response_id="a", created=0, model="m", prompts=[Prompt([1])], n=1, echo=False)
        self.turn = 0
        self.chunks: Counter[int] = Counter()

    def chunk(self, choice: int, delta: RequestDelta) -> Any:
        self.chunks[self.turn] += 1
        return super().chunk(choice, delta)


async def test_many_updates_at_once_are_cut_into_turns_and_come_in_order() -> None:
    face, count = CountingFace(), 5 * MOST + 1

    async def pending() -> AsyncIterator[list[Update]]:
        yield [update(number) for number in range(count // 2, count)]

    async def tick() -> None:
        while True:
            face.turn += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    first = [update(number) for number in range(count // 2)]
    stream = b"".join([part async for part in generate._chunks(pending(), first, face, False, False)])  # type: ignore[arg-type]
    ticking.cancel()
    texts = [line.partition(b'"text":"')[2].partition(b'"')[0] for line in stream.splitlines() if b'"text"' in line]
    assert [int(text) for text in texts] == list(range(count))
    assert max(face.chunks.values()) <= MOST and sum(face.chunks.values()) == count
