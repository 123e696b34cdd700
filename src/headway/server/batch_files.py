"""Batch files: requests in a file, one JSON object a line, and a file of their answers, in OpenAI's form.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}

becomes, in the line of the same number (lines without text do not count):

    {"id": "batch_req_...", "custom_id": "a", "response": {"status_code": 200, "request_id": "...", "body": {...}},
     "error": null}

A request that is refused has the status and the body of its refusal. A line that is no request has no response, and an
error with code and message. Either leaves the other lines alone. Answers are written to `partial_file(target)`, which
gets the name `target` when it is complete.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from fastapi import FastAPI
from pydantic_core import from_json

from headway.errors import EngineDeadError
from headway.server.answers.generate import encode_json
from headway.server.body import MAX_BODY

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_WINDOW = 4  # lines that are read ahead of the line to be written next, per line that is answered at once
_RETRY_S = 0.5  # seconds until a request that found the queue full is sent again
_ENGINE_IS_GONE = frozenset({"engine_dead", "engine_restarting", "shutting_down"})


@dataclass(slots=True)
class Progress:
    """num_lines: written. num_errors: of these, without an answer. share: of the input that has been read."""

    num_lines: int = 0
    num_errors: int = 0
    share: float = 0.0


class BadLine(ValueError):
    """A line is no request that a batch can have."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


def partial_file(target: Path) -> Path:
    """Where answers are until all are there."""
    return target.with_name(f"{target.name}.partial")


async def run_batch(
    app: FastAPI,
    source: Path,
    target: Path,
    *,
    concurrency: int,
    progress: Progress,
    on_line: Callable[[], None] = lambda: None,
) -> None:
    """Answer the requests in `source`, in order, into `target`.

    concurrency: requests that are answered at once. progress: is kept up to date. on_line: called after each line.
    Raises OSError for files that cannot be read or written, ValueError if both are the same file, and EngineDeadError.
    """
    if source.resolve() in (target.resolve(), partial_file(target).resolve()):
        raise ValueError(f"the answers would overwrite the requests: {source} is both input and output")
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    with source.open("rb") as requests, partial_file(target).open("wb") as answers:
        async with httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=None) as http:
            batch = _Batch(http, asyncio.Semaphore(concurrency))
            async for line in batch.answers(_lines(requests), _WINDOW * concurrency):
                answers.write(encode_json(line) + b"\n")
                answers.flush()
                progress.num_lines += 1
                progress.num_errors += line["error"] is not None or line["response"]["status_code"] != 200
                progress.share = requests.tell() / max(1, os.fstat(requests.fileno()).st_size)
                on_line()
        os.fsync(answers.fileno())
    partial_file(target).replace(target)


class _Batch:
    def __init__(self, http: httpx.AsyncClient, places: asyncio.Semaphore) -> None:
        self._http = http
        self._places = places
        self._line_of: dict[str, int] = {}  # custom id -> number of its line

    async def answers(self, lines: Iterator[tuple[int, bytes]], window: int) -> Any:
        """The answers to the lines, in their order; at most `window` lines are read ahead."""
        tasks: deque[asyncio.Task[dict[str, Any]]] = deque()
        try:
            more = True
            while more or tasks:
                while more and len(tasks) < window:
                    line = next(lines, None)
                    more = line is not None
                    if line is not None:
                        tasks.append(asyncio.create_task(self._line(*line)))
                if tasks:
                    answer = await tasks[0]
                    tasks.popleft()
                    yield answer
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _line(self, number: int, line: bytes) -> dict[str, Any]:
        answer: dict[str, Any] = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": None}
        try:
            request = self._read(number, line)
        except BadLine as error:
            answer["custom_id"] = error.custom_id
            message = f"line {number}: {error}"
            return {**answer, "response": None, "error": {"code": error.code, "message": message}}
        answer["custom_id"] = request["custom_id"]
        async with self._places:
            response = await self._post(request["url"], request["body"])
        said = {
            "status_code": response.status_code,
            "request_id": response.headers["X-Request-Id"],
            "body": response.json(),
        }
        return {**answer, "response": said, "error": None}

    def _read(self, number: int, line: bytes) -> dict[str, Any]:
        """The request in a line. Raises BadLine."""
        if len(line) > MAX_BODY:
            raise BadLine("too_long", f"it has more than {MAX_BODY} bytes, which is the limit")
        try:
            request = from_json(line)
        except ValueError as error:
            raise BadLine("invalid_json", f"it is not valid JSON in UTF-8: {error}") from None
        if not isinstance(request, dict):
            raise BadLine("invalid_request", "it is not a JSON object")
        name = request.get("custom_id")
        if not isinstance(name, str) or not name:
            raise BadLine("invalid_request", "it needs a custom_id, which is a text")
        if (first := self._line_of.setdefault(name, number)) != number:
            raise BadLine("duplicate_custom_id", f"the custom_id {name[:100]!r} is that of line {first}", name)
        _check(request, name)
        return request

    async def _post(self, url: str, body: dict[str, Any]) -> httpx.Response:
        """The response; a full queue is waited for. Raises EngineDeadError."""
        content = encode_json(body)
        while True:
            response = await self._http.post(url, content=content, headers={"Content-Type": "application/json"})
            if response.status_code != 503:
                return response
            error = response.json()["error"]
            if error["code"] in _ENGINE_IS_GONE:
                raise EngineDeadError(error["message"])
            if error["code"] != "queue_full":
                return response
            await _wait(_RETRY_S)


async def _wait(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _check(request: dict[str, Any], name: str) -> None:
    method, url, body = (request.get(field) for field in ("method", "url", "body"))
    if method != "POST":
        raise BadLine("invalid_request", f"its method must be 'POST', got {method!r:.100}", name)
    if url not in PATHS:
        raise BadLine("invalid_url", f"its url must be one of {', '.join(PATHS)}, got {url!r:.100}", name)
    if not isinstance(body, dict):
        raise BadLine("invalid_request", "it needs a body, which is a JSON object", name)
    if body.get("stream"):
        raise BadLine("invalid_request", "its body asks for a stream, which no file can have: leave it out", name)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The numbers and texts of the lines that have text. Of a line that is too long comes as much as shows it."""
    number = 0
    while line := file.readline(MAX_BODY + 2):
        number += 1
        rest = line
        while len(rest) == MAX_BODY + 2 and not rest.endswith(b"\n"):
            rest = file.readline(MAX_BODY + 2)
        if line := line.strip():
            yield number, line
