"""What `headway bench abuse` does to a server, and what a right server answers."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any

from headway.bench.costly_bodies import BODIES, CHAT, TEXT
from headway.bench.raw_http import Address, Answer, Connection, get, post
from headway.client.prompt_encoder import LONGEST_TOKENIZED

PATIENCE_S = 60.0  # for an answer; then its status is "none"

BURST = 4_000  # answers; a server holds 256 + 4,096 by default
SILENT = 1_100  # connections; more than the soft limit of files with which the server starts
UNREAD = 3  # streams
LEAVING = 8  # clients
IDLE_S = 3.0
LEAVE_S = 1.0
POLL_S = 1.0

_LOGPROBS_AND_MORE = {"logprobs": 20, "temperature": 1.0, "ignore_eos": True, "stream": True}


class Attack(ABC):
    """One kind of abuse. It is used once.

    statuses: those of a right server, as `run` writes them. sent_bytes, seconds: what was sent, and the seconds until
    the last answer; `run` sets them.
    """

    def __init__(self, *statuses: str) -> None:
        self.statuses = frozenset(statuses)
        self.sent_bytes = 0
        self.seconds = 0.0

    def prepare(self) -> None:  # noqa: B027  most attacks have nothing to prepare
        """Make what will be sent, before any time is measured."""

    @abstractmethod
    async def run(self, address: Address) -> list[str]:
        """Returns the status of every answer that was waited for."""

    async def _ask(self, address: Address, request: bytes, status: Callable[[Answer], str] | None = None) -> str:
        """The status of the answer to a request on a connection of its own."""
        self.sent_bytes += len(request)
        return await _within_patience(self._answer(address, request, status or (lambda answer: str(answer.status))))

    async def _answer(self, address: Address, request: bytes, status: Callable[[Answer], str]) -> str:
        began, connection = perf_counter(), await Connection.open(address)
        try:
            return status(await connection.ask(request))
        finally:
            self.seconds = max(self.seconds, perf_counter() - began)
            connection.close()


async def _within_patience(work: Coroutine[Any, Any, str]) -> str:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await work
    except (OSError, EOFError) as error:  # a timeout is an OSError
        return f"none ({type(error).__name__})"


class Idle(Attack):
    """Nothing: the waits of a neighbour that is alone."""

    async def run(self, address: Address) -> list[str]:  # noqa: ARG002
        await asyncio.sleep(IDLE_S)
        return []


class Bodies(Attack):
    """A costly body, `count` times at once. name: of `BODIES`."""

    def __init__(self, name: str, count: int = 1) -> None:
        self._body = BODIES[name]
        self._count = count
        also = {503} if count > 1 else set()
        super().__init__(*(str(status) for status in self._body.statuses | also))

    def prepare(self) -> None:
        self._request = post(self._body.path, self._body.make())

    async def run(self, address: Address) -> list[str]:
        return await asyncio.gather(*(self._ask(address, self._request) for _ in range(self._count)))


class Burst(Attack):
    """As many answers as a server just holds; all must come."""

    def __init__(self) -> None:
        super().__init__("200 whole")

    def prepare(self) -> None:
        self._request = post(TEXT, {"prompt": ["1"] * BURST, "max_tokens": 1})

    async def run(self, address: Address) -> list[str]:
        def status(answer: Answer) -> str:
            return f"{answer.status} whole" if answer.body.count(b'"finish_reason"') == BURST else str(answer.status)

        return [await self._ask(address, self._request, status)]


class LeftBehind(Attack):
    """Clients send long texts to be tokenised, and leave; then other clients come with texts of usual lengths."""

    def __init__(self) -> None:
        super().__init__("200")

    def prepare(self) -> None:
        self._long = post("/tokenize", {"prompt": "12+34=46 " * (LONGEST_TOKENIZED // 9)})
        messages = [{"role": "user", "content": "1+2=3 " * 30}]
        self._usual = [
            post("/tokenize", {"prompt": "1+2=3 " * 700}),  # 4,200 characters
            post(TEXT, {"prompt": "1+2=3 " * 30, "max_tokens": 1}),
            post(CHAT, {"messages": messages, "max_tokens": 1}),
        ]

    async def run(self, address: Address) -> list[str]:
        leaving = [await Connection.open(address) for _ in range(LEAVING)]
        for connection in leaving:
            await connection.send(self._long)
            self.sent_bytes += len(self._long)
        await asyncio.sleep(LEAVE_S)
        for connection in leaving:
            connection.close()
        return [await self._ask(address, request) for request in self._usual]


class Silence(Attack):
    """Connections that send nothing; then a client that does."""

    def __init__(self) -> None:
        super().__init__("200")

    async def run(self, address: Address) -> list[str]:
        silent = [await Connection.open(address) for _ in range(SILENT)]
        completion = post(TEXT, {"prompt": "1+1=", "max_tokens": 1})
        try:
            return [await self._ask(address, request) for request in (get("/health"), completion)]
        finally:
            for connection in silent:
                connection.close()


class Deaf(Attack):
    """Long streams that are not read before all of them are over. seconds: until they have been read."""

    def __init__(self) -> None:
        super().__init__("200 slow_reader", "200 whole")

    async def run(self, address: Address) -> list[str]:
        began = perf_counter()
        streams, self.sent_bytes = await open_deaf(address)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.sleep(POLL_S)
                while await _num_running(address) > 1:  # the neighbour's stream goes on
                    await asyncio.sleep(POLL_S)
            return [await _within_patience(self._read(stream)) for stream in streams]
        except TimeoutError:
            return ["still open"]
        finally:
            self.seconds = perf_counter() - began
            for stream in streams:
                stream.close()

    async def _read(self, stream: Connection) -> str:
        data = await stream.read_stream()
        end = "slow_reader" if b'"slow_reader"' in data else "error" if b'"error"' in data else "whole"
        return f"{data[9:12].decode()} {end}"


async def open_deaf(address: Address) -> tuple[list[Connection], int]:
    """Streams that are not read, and the bytes that were sent for them."""
    request = post(TEXT, {"prompt": "1+1=", "max_tokens": 1_900, "n": 16, **_LOGPROBS_AND_MORE})
    streams = [await Connection.open_deaf(address) for _ in range(UNREAD)]
    for stream in streams:
        await stream.send(request)
    return streams, UNREAD * len(request)


async def _num_running(address: Address) -> float:
    connection = await Connection.open(address)
    try:
        page = (await connection.ask(get("/metrics"))).body.decode()
    finally:
        connection.close()
    (line,) = (line for line in page.splitlines() if line.startswith("headway:num_requests_running{"))
    return float(line.rsplit(" ", 1)[1])


def summary(statuses: Sequence[str]) -> str:
    """Statuses with their numbers: "200, 503 x 3"."""
    return ", ".join(status if count == 1 else f"{status} x {count}" for status, count in Counter(statuses).items())


ATTACKS: dict[str, Callable[[], Attack]] = {
    "long prompt": lambda: Bodies("long prompt"),
    "four long prompts": lambda: Bodies("long prompt", 4),
    "longest prompt": lambda: Bodies("longest prompt"),
    "twenty longest prompts": lambda: Bodies("longest prompt", 20),
    "left behind": LeftBehind,
    "burst": Burst,
    **{name: lambda name=name: Bodies(name) for name in BODIES if "prompt" not in name.split()},  # type: ignore[misc]
    "silence": Silence,
    "deaf": Deaf,
}
