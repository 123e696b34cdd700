"""What the API replicas tell an engine replica, by a socket of its own: they come and go, they live, and which of
Ray's calls are over.

Ray's own calls would do the same at a hundred times the cost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from headway.errors import EngineDeadError
from headway.wire.wire_errors import WireError

BEAT_SECONDS = 2.0
SILENT_SECONDS = 15.0  # after which a client counts as dead
_MOST_EARLY = 4096  # ends that came before their calls


class Over(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """These tickets are done with. client: the API replica, a number chosen by chance."""

    client: int
    tickets: list[int]


class Beat(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """I live. number: under which the engine process knows me, see `to_engine.Attach`."""

    client: int
    number: int


class Bye(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """I want nothing more of this engine."""

    client: int


ToDesk = Over | Beat | Bye
encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(ToDesk)


def decode(data: bytes) -> ToDesk:
    """The message in `data`. Raises WireError for other bytes."""
    try:
        message: ToDesk = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{len(data)} bytes that are no message: {type(error).__name__}") from None
    return message


class Desk:
    """The clients of one engine, and their calls that are open. For one event loop; no I/O.

    detach: told of the numbers of clients that have gone.
    """

    def __init__(
        self,
        detach: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._detach = detach
        self._clock = clock
        self._heard: dict[int, float] = {}  # of each client, when
        self._numbers: dict[int, int] = {}
        self._gone: set[int] = set()
        self._open: dict[tuple[int, int], asyncio.Future[None]] = {}
        self._early: dict[tuple[int, int], None] = {}
        self._failure: str | None = None

    @property
    def num_clients(self) -> int:
        """Clients that are attached."""
        return len(self._heard)

    @property
    def num_open(self) -> int:
        """Calls that are open."""
        return len(self._open)

    def take(self, message: ToDesk) -> None:
        """A client says this. Raises WireError for a client that has gone."""
        client = message.client
        if client in self._gone:
            raise WireError(f"a message of client {client}, which has gone")
        self._heard[client] = self._clock()
        if isinstance(message, Beat):
            before = self._numbers.get(client, message.number)
            self._numbers[client] = message.number
            if before != message.number:  # it could not be attached under the first
                self._detach(before)
        elif isinstance(message, Bye):
            self._drop(client)
        elif isinstance(message, Over):
            for ticket in message.tickets:
                self._end(client, ticket)

    async def hold(self, client: int, ticket: int) -> None:
        """Returns when the ticket is done with, or its client is gone. Raises EngineDeadError when the engine dies."""
        if self._failure is not None:
            raise EngineDeadError(self._failure)
        key = client, ticket
        if client in self._gone:
            return
        self._heard.setdefault(client, self._clock())
        if key in self._early:
            del self._early[key]
            return
        self._open[key] = over = asyncio.get_running_loop().create_future()
        try:
            await over
        finally:
            self._open.pop(key, None)

    def look(self) -> None:
        """Drop the clients that have been silent for too long. To be called now and then."""
        now = self._clock()
        for client in [client for client, heard in self._heard.items() if now - heard > SILENT_SECONDS]:
            self._drop(client)

    def fail(self, why: str) -> None:
        """End all calls with an error, and those to come: the engine has died. why: in one line."""
        self._failure = why
        for over in self._open.values():
            if not over.done():
                over.set_exception(EngineDeadError(why))

    def _end(self, client: int, ticket: int) -> None:
        over = self._open.get((client, ticket))
        if over is None:
            self._early[client, ticket] = None
            while len(self._early) > _MOST_EARLY:
                del self._early[next(iter(self._early))]
        elif not over.done():
            over.set_result(None)

    def _drop(self, client: int) -> None:
        del self._heard[client]
        self._gone.add(client)
        for key in [key for key in self._open if key[0] == client]:
            self._end(*key)
        if (number := self._numbers.pop(client, None)) is not None:
            self._detach(number)
