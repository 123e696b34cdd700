"""A client: it asks, in one of the two ways that prefill and decode engines are driven, and notes what it sees."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from headway_lab.chaos.cases import Case, text_of, tokens_of
from headway_lab.chaos.history import End, Event, Failure, Finish, History, Piece

PATIENCE = 180.0  # seconds; no fault lasts a tenth of it
ASKS_P = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None}
Note = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Router:
    """Asks the engine `prefill` first, and passes on what it lends; after a failure of it, the decode engine computes
    the prompt. wait: seconds between the two. drops: the client leaves before the decode engine hears of it."""

    prefill: str
    wait: float = 0.0
    drops: bool = False


class Client:
    """Asks servers by their names. urls: of the servers. histories: of all requests, in the order of their beginning.

    Every request has a connection of its own, so none is sent on a connection that a server is about to close.
    """

    def __init__(self, urls: Mapping[str, str]) -> None:
        self.histories: list[History] = []
        self._urls = urls
        self._numbers = itertools.count()
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(PATIENCE, connect=PATIENCE),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def ask(
        self,
        number: int,
        case: Case,
        decode: str,
        *,
        router: Router | None = None,
        stream: bool,
        leaves: float | None = None,
    ) -> History:
        """Send a case, and return what came. router: None: the decode engine asks prefill engines by itself.
        leaves: seconds until the client goes."""
        body = {**case.body, "stream": stream}
        way = "alone" if router is None else "by a router"
        if router is not None:
            first = History(next(self._numbers), number, router.prefill, time.monotonic(), way, is_first_token=True)
            asked = {**case.body, "stream": False, "max_tokens": 1, "kv_transfer_params": ASKS_P}
            params = await self._send(first, case.path, asked, None)
            if params is not None:
                body["kv_transfer_params"] = params
            if router.drops:
                return first
            await asyncio.sleep(router.wait)
        history = History(next(self._numbers), number, decode, time.monotonic(), way)
        await self._send(history, case.path, body, leaves)
        return history

    async def _send(self, history: History, path: str, body: dict[str, Any], leaves: float | None) -> Any:
        """Returns the `kv_transfer_params` of the answer."""
        self.histories.append(history)
        note = history.events.append
        params = None
        try:
            async with asyncio.timeout(PATIENCE if leaves is None else leaves):
                params = await self._exchange(self._urls[history.server] + path, body, note)
        except (TimeoutError, httpx.TimeoutException):
            _note_end(history, End("late" if leaves is None else "left"))
        except httpx.ConnectError as error:
            _note_end(history, End("refused", repr(error)))
        except (httpx.TransportError, json.JSONDecodeError) as error:
            _note_end(history, End("cut", repr(error)))
        history.ended = time.monotonic()
        return params

    async def _exchange(self, url: str, body: dict[str, Any], note: Note) -> Any:
        async with self._http.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                note(Failure(response.text[:200], response.status_code))
                note(End("done"))
            elif body["stream"]:
                await _note_stream(response, note)
            else:
                await response.aread()
                answer = response.json()
                for choice in answer["choices"]:
                    _note_choice(choice, note)
                note(End("done"))
                return answer.get("kv_transfer_params")
        return None


def _note_end(history: History, end: End) -> None:
    """Note an end that is no word of the server. After its last word it does not matter how the connection ends."""
    if not any(isinstance(event, End) for event in history.events):
        history.events.append(end)


async def _note_stream(response: httpx.Response, note: Note) -> None:
    is_done = False
    async for line in response.aiter_lines():
        if not line:
            continue
        if is_done:  # an end that is none: the verdict sees two
            note(End("cut", f"after the end came {line[:100]!r}"))
            return
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            is_done = True
            note(End("done"))
            continue
        event = json.loads(data)
        if "error" in event:
            note(Failure(str(event["error"]["message"])[:200]))
            continue
        for choice in event["choices"]:
            _note_choice(choice, note)
    if not is_done:
        note(End("cut", "the stream is over"))


def _note_choice(choice: Mapping[str, Any], note: Note) -> None:
    text, tokens = text_of(choice), tokens_of(choice)
    if text or tokens:
        note(Piece(choice["index"], text, tokens))
    if choice.get("finish_reason") is not None:
        note(Finish(choice["index"], choice["finish_reason"]))
