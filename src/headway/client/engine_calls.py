"""Calls that concern the whole engine, and wait for its answer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from math import inf
from typing import Any

from headway.wire import to_client, to_engine
from headway.wire.refusals import refusal

ANSWER_MARGIN = 5.0  # seconds that the answer to a call may come later than its timeout in the engine


class NoAnswerError(TimeoutError):
    """The engine process has not answered a call in time."""


class EngineCalls:
    """The calls that wait, by number. send: sends a message to the engine. first: the first number."""

    def __init__(self, send: Callable[[to_engine.Call], None], first: int) -> None:
        self._send = send
        self._numbers = itertools.count(first)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def call(self, call: to_engine.EngineCall, timeout: float = 0.0) -> Any:
        """Return or raise what the call returned or raised in the engine. timeout: seconds for the engine alone.

        Raises NoAnswerError if no answer comes.
        """
        limit = timeout + ANSWER_MARGIN
        number = self.tell(call, time.monotonic() + limit)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(limit):
                return await future
        except TimeoutError:
            if not future.cancelled():  # raised in the engine, with a better message
                raise
            raise NoAnswerError(f"the engine process has not answered within {limit:g} s") from None
        finally:
            del self._waiting[number]

    def tell(self, call: to_engine.EngineCall, until: float = inf) -> int:
        """Send a call and wait for nothing; returns its number. until: seconds, see `to_engine.Call`."""
        number = next(self._numbers)
        self._send(to_engine.Call(number, call, until))
        return number

    def take(self, answer: to_client.Returned | to_client.Raised) -> None:
        """The engine has answered. An answer that comes too late is dropped."""
        future = self._waiting.get(answer.number)
        if future is None or future.done():
            return
        match answer:
            case to_client.Returned(_, value):
                future.set_result(value)
            case to_client.Raised(_, kind, text):
                future.set_exception(refusal(kind, text))

    def fail(self, error: Callable[[], Exception]) -> None:
        """End all calls that wait. error: makes the error of a call; raising changes it, so each gets its own."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error())
