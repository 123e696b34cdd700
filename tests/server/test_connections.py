"""Connections are bounded in number and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from headway.server.entrance.connections import BoundedProtocol

PATIENCE = 60.0  # seconds
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hi"})


@asynccontextmanager
async def connected(**limits: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    protocol = type("Limited", (BoundedProtocol,), limits)
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_level="error")
    config.load()
    state = uvicorn.Server(config).server_state
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()


@pytest.mark.parametrize("sent", [b"", REQUEST[:20], REQUEST + REQUEST[:20]])
async def test_a_connection_without_a_whole_head_is_closed(sent: bytes) -> None:
    async with connected(head_seconds=0.2) as (reader, writer), asyncio.timeout(PATIENCE):
        writer.write(sent)
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""
    assert (b"200 OK" in answer) is sent.startswith(REQUEST)


async def test_one_connection_too_many_is_told_so() -> None:
    async with connected(limit=0) as (reader, writer), asyncio.timeout(PATIENCE):
        writer.write(REQUEST)
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 503") and b"too_many_connections" in answer and b"retry-after: 1" in answer
