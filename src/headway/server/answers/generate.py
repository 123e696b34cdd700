"""From a pending request to an HTTP response, whole or as a stream of server-sent events.

A refusal becomes the status of the response, also for a stream: nothing is sent before the first update of the engine.
When a client disconnects, at any moment, its pending request is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from headway.client.pending import Pending, Update
from headway.client.prompt_scores import PromptScores
from headway.client.text_pool import TextPool
from headway.outputs import RequestDelta, RequestOutput
from headway.server.answers.answer_bodies import PromptTokensDetails, Usage
from headway.server.errors import ApiError, ClientDisconnected, as_api_error

T = TypeVar("T")
_CHOICE_SIZE = 32  # characters that take as long as a choice without any
_VALUE_SIZE = 16  # characters that take as long as a log-probability of the prompt
encode_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Prompt:
    """token_ids: the prompt for the model. text: of the prompt, if the client sent a text."""

    token_ids: list[int]
    text: str | None = None


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


class Face(ABC):
    """The form of the answers to one HTTP request: one body, or events of a stream. Answer i of prompt p is choice
    p * n + i.

    A stream is begun once, with its first update. Then it is ended, or it fails.
    counts: of the updates so far; an update is counted before its events are asked for.
    """

    def __init__(self, *, response_id: str, created: int, model: str, prompts: list[Prompt], n: int) -> None:
        self.id = response_id
        self.created = created
        self.model = model
        self.prompts = prompts
        self.n = n
        self.counts = Counts(prompts)

    @abstractmethod
    def whole(self, outputs: list[RequestOutput], usage: Usage) -> msgspec.Struct:
        """The body of a response that is not a stream; outputs in the order of the prompts."""

    def begin(self) -> Iterator[bytes]:
        """The events before the events of the first update."""
        return iter(())

    @abstractmethod
    def events(self, choice: int, delta: RequestDelta) -> Iterator[bytes]:
        """The events of an update."""

    @abstractmethod
    def end(self) -> Iterator[bytes]:
        """The last events of a stream whose answers are complete."""

    @abstractmethod
    def failed(self, error: ApiError) -> Iterator[bytes]:
        """The last events of a stream that an error ends: its status has been sent, so the error comes in it."""


def event(name: str, data: msgspec.Struct | dict[str, Any]) -> bytes:
    """A server-sent event with a name."""
    return b"event: " + name.encode() + b"\ndata: " + encode_json(data) + b"\n\n"


async def respond(http: Request, pending: Pending, face: Face, *, stream: bool, texts: TextPool) -> Response:
    """The response to `http`; a large one is made in `texts`. Closes the pending request at its end. Raises the error
    with which the engine refuses."""
    try:
        if not stream:
            return await unless_disconnected(http, _whole(pending, face, texts))
        first = await unless_disconnected(http, anext(pending))
    except BaseException:
        pending.close()
        raise
    return _EventStream(pending, _events(pending, first, face, texts))


async def _whole(pending: Pending, face: Face, texts: TextPool) -> Response:
    outputs: dict[int, RequestOutput] = {}
    with pending:
        async for updates in pending:
            for update in updates:
                assert isinstance(update.output, RequestOutput)
                outputs[update.prompt_index] = update.output
                face.counts.add(update)
    usage = face.counts.usage()

    def body() -> bytes:
        answer: Any = face.whole([outputs[i] for i in sorted(outputs)], usage)
        if (params := outputs[0].kv_transfer_params) is not None:
            answer.kv_transfer_params = params
        return encode_json(answer)

    size = usage.completion_tokens + _CHOICE_SIZE * len(outputs) * face.n + _size_of_scores(outputs.values()) * face.n
    return Response(await texts.run(size, body), media_type="application/json")


async def _events(pending: Pending, first: list[Update], face: Face, texts: TextPool) -> AsyncIterator[bytes]:
    updates = first
    begun = False
    try:
        while True:
            size = _size_of_scores(update.output for update in updates) * face.n
            if events := await texts.run(size, partial(_joined_events, updates, face, begun)):
                yield events
            begun = True
            try:
                updates = await anext(pending)
            except StopAsyncIteration:
                break
        if events := b"".join(face.end()):
            yield events
    except Exception as error:
        yield b"".join(face.failed(as_api_error(error)))


def _size_of_scores(outputs: Iterable[RequestOutput | RequestDelta]) -> int:
    """Characters that take as long as the log-probabilities of the prompts."""
    scores = (output.prompt_logprobs for output in outputs)
    return _VALUE_SIZE * sum(some.num_values for some in scores if isinstance(some, PromptScores))


def _joined_events(updates: Sequence[Update], face: Face, begun: bool) -> bytes:
    return b"".join(_events_of(updates, face, begun))


def _events_of(updates: Sequence[Update], face: Face, begun: bool) -> Iterator[bytes]:
    for update in updates:
        delta = update.output
        assert isinstance(delta, RequestDelta)
        face.counts.add(update)
        if not begun:
            begun = True
            yield from face.begin()
        yield from face.events(update.prompt_index * face.n + delta.index, delta)


class _EventStream(StreamingResponse):
    """Closes its pending request when it ends, even if it ends before its first byte."""

    def __init__(self, pending: Pending, body: AsyncIterator[bytes]) -> None:
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
