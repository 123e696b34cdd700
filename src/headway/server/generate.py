"""From a pending request to an HTTP response, whole or as a stream of server-sent events.

A refusal becomes the status of the response, also for a stream: nothing is sent before the first update of the engine.
When a client disconnects, at any moment, its pending request is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from headway.client.engine_client import PendingRequest, Update
from headway.client.text_pool import TextPool
from headway.outputs import RequestDelta, RequestOutput
from headway.server.errors import ClientDisconnected, as_api_error
from headway.server.responses import PromptTokensDetails, Usage

T = TypeVar("T")
_CHOICE_SIZE = 32  # characters that take as long as a choice without any
encode_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Prompt:
    """token_ids: the prompt for the model. text: of the prompt, if the client sent a text."""

    token_ids: list[int]
    text: str | None = None


class Face(ABC):
    """The form of the answers to one HTTP request. Answer i of prompt p is choice p * n + i."""

    def __init__(self, *, response_id: str, created: int, model: str, prompts: list[Prompt], n: int) -> None:
        self.id = response_id
        self.created = created
        self.model = model
        self.prompts = prompts
        self.n = n

    @abstractmethod
    def whole(self, outputs: list[RequestOutput], usage: Usage) -> msgspec.Struct:
        """The body of a response that is not a stream; outputs in the order of the prompts."""

    @abstractmethod
    def opening(self, choice: int) -> msgspec.Struct | None:
        """The first chunk of a choice in a stream, before its first delta; None: there is none."""

    @abstractmethod
    def chunk(self, choice: int, delta: RequestDelta) -> Any:
        """The chunk for a delta of a choice; its `usage` can be set. None: nothing is said yet."""

    @abstractmethod
    def closing(self, usage: Usage) -> msgspec.Struct:
        """The last chunk, with the usage, for a client that asked for it."""


class Counts:
    """The usage of a request, counted from its updates."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self._prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        self._completion: dict[tuple[int, int], int] = {}
        self._cached = [0] * len(prompts)

    def add(self, update: Update) -> None:
        output = update.output
        self._cached[update.prompt_index] = output.num_cached_tokens
        if isinstance(output, RequestDelta):
            self._completion[update.prompt_index, output.index] = output.num_tokens
        else:
            for answer in output.outputs:
                self._completion[update.prompt_index, answer.index] = len(answer.token_ids)

    def usage(self) -> Usage:
        completion_tokens = sum(self._completion.values())
        return Usage(
            self._prompt_tokens,
            completion_tokens,
            self._prompt_tokens + completion_tokens,
            PromptTokensDetails(sum(self._cached)),
        )


async def respond(
    http: Request,
    pending: PendingRequest,
    face: Face,
    *,
    stream: bool,
    include_usage: bool,
    continuous_usage: bool,
    texts: TextPool,
) -> Response:
    """The response to `http`; a large one is made in `texts`. Closes the pending request at its end. Raises the error
    with which the engine refuses."""
    try:
        if not stream:
            return await unless_disconnected(http, _whole(pending, face, texts))
        first = await unless_disconnected(http, anext(pending))
    except BaseException:
        pending.close()
        raise
    body = _chunks(pending, first, face, include_usage, continuous_usage)
    return _EventStream(pending, body)


async def _whole(pending: PendingRequest, face: Face, texts: TextPool) -> Response:
    counts = Counts(face.prompts)
    outputs: dict[int, RequestOutput] = {}
    with pending:
        async for updates in pending:
            for update in updates:
                assert isinstance(update.output, RequestOutput)
                outputs[update.prompt_index] = update.output
                counts.add(update)
    usage = counts.usage()

    def body() -> bytes:
        answer: Any = face.whole([outputs[i] for i in sorted(outputs)], usage)
        if (params := outputs[0].kv_transfer_params) is not None:
            answer.kv_transfer_params = params
        return encode_json(answer)

    size = usage.completion_tokens + _CHOICE_SIZE * len(outputs) * face.n
    return Response(await texts.run(size, body), media_type="application/json")


async def _chunks(
    pending: PendingRequest, first: list[Update], face: Face, include_usage: bool, continuous_usage: bool
) -> AsyncIterator[bytes]:
    counts = Counts(face.prompts)
    opened: set[int] = set()
    updates = first
    try:
        while True:
            if lines := b"".join(_lines(updates, face, counts, opened, include_usage, continuous_usage)):
                yield lines
            try:
                updates = await anext(pending)
            except StopAsyncIteration:
                break
        if include_usage:
            yield _line(face.closing(counts.usage()), True)
    except Exception as error:  # the status has been sent: the error has to follow in the stream
        yield b"data: " + encode_json(as_api_error(error).body()) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _lines(
    updates: Sequence[Update],
    face: Face,
    counts: Counts,
    opened: set[int],
    include_usage: bool,
    continuous_usage: bool,
) -> Iterator[bytes]:
    """The chunks for some updates. opened: the choices that have had a chunk; it is kept up to date, as `counts` is."""
    for update in updates:
        delta = update.output
        assert isinstance(delta, RequestDelta)
        counts.add(update)
        choice = update.prompt_index * face.n + delta.index
        if choice not in opened:
            opened.add(choice)
            if (opening := face.opening(choice)) is not None:
                yield _line(opening, include_usage)
        if delta.text or delta.logprobs or delta.finish_reason is not None or delta.kv_transfer_params is not None:
            chunk = face.chunk(choice, delta)
            if chunk is None:
                continue
            if delta.kv_transfer_params is not None:
                chunk.kv_transfer_params = delta.kv_transfer_params
            if continuous_usage:
                chunk.usage = counts.usage()
            yield _line(chunk, include_usage)


def _line(chunk: Any, include_usage: bool) -> bytes:
    if include_usage and chunk.usage is msgspec.UNSET:
        chunk.usage = None  # as OpenAI's API: null in every chunk but the last
    return b"data: " + encode_json(chunk) + b"\n\n"


class _EventStream(StreamingResponse):
    """Closes its pending request when it ends, even if it ends before its first byte."""

    def __init__(self, pending: PendingRequest, body: AsyncIterator[bytes]) -> None:
        super().__init__(body, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._pending = pending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._pending:
            await super().__call__(scope, receive, send)


async def unless_disconnected(http: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns. If the client disconnects before, cancel `work` and raise ClientDisconnected."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _disconnect(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
