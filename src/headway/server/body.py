"""Reads the body of a request: in bounded time, in bounded memory, and long ones off the event loop."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TypeVar

from fastapi import Request
from pydantic import TypeAdapter
from pydantic_core import from_json

from headway.client.text_pool import TextPool
from headway.server.errors import ApiError
from headway.server.json_census import JsonCensus

B = TypeVar("B")

MAX_BODY = 64 * 2**20  # bytes
BODY_SECONDS = 120.0  # from the head of a request to the end of its body
_PIECE = 65_536  # bytes that are counted in one turn of the event loop


async def read_body(request: Request, adapter: TypeAdapter[B], texts: TextPool) -> B:
    """The body of a request, validated by `adapter`. Raises ApiError or pydantic's ValidationError."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise ApiError(415, f"Content-Type must be application/json, got {media_type or 'none'!r}")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _receive(request)
    except TimeoutError:
        raise ApiError(408, f"the body was not complete within {BODY_SECONDS:g} s") from None
    return await texts.run(len(body), partial(_parse, body, adapter))


async def _receive(request: Request) -> bytearray:
    body = bytearray()
    census = JsonCensus()
    async for part in request.stream():
        if len(body) + len(part) > MAX_BODY:
            raise ApiError(413, f"the body has more than {MAX_BODY} bytes, which is the limit")
        for start in range(0, len(part), _PIECE):
            census.add(part[start : start + _PIECE])
            if start:
                await asyncio.sleep(0)
        body += part
    return body


def _parse(body: bytearray, adapter: TypeAdapter[B]) -> B:
    try:
        value = from_json(body, allow_inf_nan=True, cache_strings="keys")
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON in UTF-8: {error}") from None
    return adapter.validate_python(value)
