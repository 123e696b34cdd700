"""Sends requests to an OpenAI-compatible server at their times and notes when each token came back.

One asyncio loop, one HTTP connection per request in flight, answers streamed. Token counts come from the server, from
the usage chunk that ends a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import httpx
import msgspec


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request to send. arrival_s: seconds after the start. prompt: text or token ids. answer: the right answer, if
    there is one."""

    arrival_s: float
    prompt: str | list[int]
    max_tokens: int
    answer: str | None = None


@dataclass(slots=True)
class Outcome:
    """The result of one request. Times are in seconds since it was sent; after an error they mean nothing.

    ttft_s: to the first piece of the answer. itl_s: between pieces. latency_s: to the end of the answer.
    """

    ttft_s: float | None = None
    itl_s: list[float] = field(default_factory=list)
    latency_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    right: bool | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """outcomes: in the order of the requests. send_lag_s: the greatest delay of a request behind its arrival time, in
    seconds. If it is not small, this client was slow, and the times measure the client and not the server."""

    outcomes: list[Outcome]
    duration_s: float
    send_lag_s: float


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class LoadGenerator:
    """Sends requests to one model of one server.

    headers: of every request, for a key. timeout_s: seconds of silence after which a request counts as failed.
    transport, clock, sleep: the network and the time; tests replace them.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        ignore_eos: bool = False,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._base_url, self._transport, self._headers = base_url, transport, headers
        self._clock, self._sleep = clock, sleep
        self._body = {
            "model": model,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if ignore_eos:
            # Tokens after the end are often special tokens. Unless they are shown, no text comes back to be timed.
            self._body |= {"ignore_eos": True, "skip_special_tokens": False}
        self._timeout = httpx.Timeout(timeout_s, pool=None)

    async def run(
        self,
        requests: Sequence[LoadRequest],
        *,
        max_concurrency: int | None = None,
        on_done: Callable[[Outcome], None] = lambda _: None,
    ) -> LoadResult:
        """Send all requests, in the order of their arrival times, and wait for all answers.

        max_concurrency: the most requests in flight; other requests wait, and their times begin when they are sent.
        on_done: called with each outcome as it comes.
        """
        slots = asyncio.Semaphore(max_concurrency or len(requests))
        send_lag_s = 0.0
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(
            base_url=self._base_url,
            headers=self._headers,
            timeout=self._timeout,
            limits=limits,
            transport=self._transport,
        ) as client:

            async def one(request: LoadRequest) -> Outcome:
                async with slots:
                    outcome = await self._send(client, request)
                on_done(outcome)
                return outcome

            start = self._clock()
            async with asyncio.TaskGroup() as group:
                tasks = []
                for request in requests:
                    due = start + request.arrival_s
                    if (wait_s := due - self._clock()) > 0:
                        await self._sleep(wait_s)
                    send_lag_s = max(send_lag_s, self._clock() - due)
                    tasks.append(group.create_task(one(request)))
            duration_s = self._clock() - start
        return LoadResult([task.result() for task in tasks], duration_s, send_lag_s)

    async def _send(self, client: httpx.AsyncClient, request: LoadRequest) -> Outcome:
        outcome = Outcome()
        body = {**self._body, "prompt": request.prompt, "max_tokens": request.max_tokens}
        try:
            start = self._clock()
            async with client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    outcome.error = f"HTTP {response.status_code}: {response.text[:300]}"
                    return outcome
                await self._read(response, start, outcome)
        except (httpx.HTTPError, msgspec.MsgspecError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        if request.answer is not None and outcome.error is None:
            outcome.right = outcome.text == request.answer
        return outcome

    async def _read(self, response: httpx.Response, start: float, outcome: Outcome) -> None:
        """Read the stream to its end. Raises errors of httpx and msgspec."""
        pieces: list[str] = []
        usage: _Usage | None = None
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                break
            chunk = _decode_chunk(data)
            if chunk.error is not None:
                outcome.error = f"the stream ended with an error: {chunk.error}"
                return
            usage = chunk.usage or usage
            for choice in chunk.choices:
                now_s = self._clock() - start
                if outcome.ttft_s is None:
                    outcome.ttft_s = now_s
                elif choice.text or choice.finish_reason is None:  # a finish reason without text is no piece
                    outcome.itl_s.append(now_s - outcome.latency_s)
                outcome.latency_s = now_s
                pieces.append(choice.text)
        outcome.text = "".join(pieces)
        if usage is None:
            outcome.error = "the stream ended without a usage chunk: the answer is incomplete"
            return
        outcome.prompt_tokens = usage.prompt_tokens
        outcome.output_tokens = usage.completion_tokens
