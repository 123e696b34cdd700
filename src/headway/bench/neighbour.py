"""A client that behaves well, and notes how long it waits while others do not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter

from headway.bench.raw_http import END_OF_STREAM, Address, Connection, get, post

PROBE_S = 0.01
ANSWER_TOKENS = 1_900
_HEALTH = get("/health")
_LONG = post(
    "/v1/completions",
    {"prompt": "1+1=", "max_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": True, "stream": True},
)


@dataclass(slots=True)
class Waits:
    """The longest time of /health, the longest gap within a stream, and the first failure ("" for none)."""

    health_ms: float = 0.0
    stream_gap_ms: float = 0.0
    failure: str = ""


class Neighbour:
    """Asks /health every `PROBE_S` seconds over one connection, and streams one long answer after the other over
    another, from `begin` to `end`. The time from the end of an answer to the beginning of the next is no gap."""

    def __init__(self, address: Address, *, clock: Callable[[], float] = perf_counter) -> None:
        self._address = address
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Returns when the first piece of the stream has come, or it has failed."""
        self._waits = Waits()
        self._asked: float | None = None  # when the open probe was sent
        self._heard: float | None = None  # when the last piece came
        self._streaming = asyncio.Event()
        probing, stream = await Connection.open(self._address), await Connection.open(self._address)
        self._connections = [probing, stream]
        works = (self._probe(probing), self._stream(stream))
        self._tasks = [asyncio.ensure_future(self._watched(work)) for work in works]
        await self._streaming.wait()

    async def end(self) -> Waits:
        """The waits since `begin`, with what is still waited for."""
        self._note_probe()
        self._note_piece()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections:
            connection.close()
        return self._waits

    @property
    def failure(self) -> str:
        """The first failure since `begin`."""
        return self._waits.failure

    async def _watched(self, work: Awaitable[None]) -> None:
        try:
            await work
        except (OSError, EOFError) as error:
            self._fail(f"{type(error).__name__}: {error}")

    async def _probe(self, connection: Connection) -> None:
        while True:
            self._asked = self._clock()
            answer = await connection.ask(_HEALTH)
            self._note_probe()
            self._asked = None
            if answer.status != 200:
                self._fail(f"/health: {answer.status}")
            await asyncio.sleep(PROBE_S)

    async def _stream(self, connection: Connection) -> None:
        while True:
            self._heard = None
            await connection.send(_LONG)
            data = b""
            while not data.endswith(END_OF_STREAM):
                data = data[-len(END_OF_STREAM) :] + await connection.read()
                self._note_piece()
                self._heard = self._clock()
                self._streaming.set()
                if b'"error"' in data:
                    self._fail(f"stream: {data.decode(errors='replace')}")
                    await asyncio.sleep(PROBE_S)
                    break

    def _note_probe(self) -> None:
        if self._asked is not None:
            self._waits.health_ms = max(self._waits.health_ms, (self._clock() - self._asked) * 1000)

    def _note_piece(self) -> None:
        if self._heard is not None:
            self._waits.stream_gap_ms = max(self._waits.stream_gap_ms, (self._clock() - self._heard) * 1000)

    def _fail(self, why: str) -> None:
        self._streaming.set()  # `begin` does not wait for a stream that has failed
        self._waits.failure = self._waits.failure or " ".join(why.split())[:200]
