"""Reads the body of a request: in bounded time, in bounded memory, and long ones off the event loop."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, TypeAdapter
from pydantic_core import from_json

from headway.client.text_pool import MEDIUM, SHORT, TextPool
from headway.server.answers.generate import unless_disconnected
from headway.server.entrance.body_budget import BodyBudget
from headway.server.entrance.json_census import JsonCensus
from headway.server.errors import ApiError
from headway.server.fields.unknown_fields import UnknownFields
from headway.server.service import service_of

B = TypeVar("B")

MAX_BODY = 16 * 2**20  # bytes; to parse as many keeps the interpreter from all other work for about 40 ms
BODY_SECONDS = 120.0  # from the head of a request to the end of its body
_PIECE = 65_536  # bytes that are counted in one turn of the event loop


class BodyForm(Generic[B]):
    """What a body must be: `kind`, which is one of these models. known: the fields that any of them has."""

    def __init__(self, kind: Any, *models: type[BaseModel]) -> None:
        self.adapter: TypeAdapter[B] = TypeAdapter(kind)
        self.known = frozenset(name for model in models for name in model.model_fields)


async def read_body(request: Request, form: BodyForm[B], texts: TextPool) -> B:
    """The body of a request, in its form. Raises ApiError, pydantic's ValidationError, or
    ClientDisconnected: a long body whose client has left is not parsed."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise ApiError(415, f"Content-Type must be application/json, got {media_type or 'none'!r}")
    budget = service_of(request).bodies
    body = bytearray()
    try:
        await _receive(request, body, budget)
        parsing = texts.run(len(body), partial(_parse, body, form, service_of(request).unknown_fields))
        return await (parsing if len(body) <= SHORT else unless_disconnected(request, parsing))
    finally:
        budget.resize(len(body), 0)


async def _receive(request: Request, body: bytearray, budget: BodyBudget) -> None:
    """Fill `body` with the parts of the body as they come, each charged to the budget before."""
    _check_length(int(request.headers.get("content-length", 0)))  # uvicorn has seen that it is a number
    census = JsonCensus()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                _check_length(len(body) + len(part))
                budget.resize(len(body), len(body) + len(part))
                body += part
                for start in range(0, len(part), _PIECE):
                    census.add(part[start : start + _PIECE])
                    if start:
                        await asyncio.sleep(0)
    except TimeoutError:
        raise ApiError(408, f"the body was not complete within {BODY_SECONDS:g} s") from None


def _check_length(num_bytes: int) -> None:
    if num_bytes > MAX_BODY:
        raise ApiError(413, f"the body has more than {MAX_BODY} bytes, which is the limit")


def _parse(body: bytearray, form: BodyForm[B], unknown: UnknownFields) -> B:
    began = time.perf_counter()
    try:
        value = from_json(body, allow_inf_nan=True, cache_strings="none")
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON in UTF-8: {error}") from None
    if len(body) > MEDIUM:  # not on the event loop
        # The parser lets no other thread run: the event loop gets as much time before the next long body is parsed.
        time.sleep(time.perf_counter() - began)
    return form.adapter.validate_python(unknown.without(value, form.known))
