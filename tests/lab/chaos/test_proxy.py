"""The proxy passes bytes on, late, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from headway_lab.chaos.proxy import Proxy

from headway.cluster.held_ports import HeldPorts


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    with HeldPorts() as ports:
        proxy = Proxy(server.sockets[0].getsockname()[1], ports)
        await proxy.start()
        yield proxy
        await proxy.close()
    server.close()


async def echoed(proxy: Proxy) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(b"hello")
        return await rest(reader)
    finally:
        writer.close()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """The next bytes; none if the connection is over, in whatever way."""
    try:
        return await reader.read(5)
    except ConnectionError:
        return b""


async def test_bytes_pass(proxy: Proxy) -> None:
    assert await echoed(proxy) == b"hello"
    proxy.delay = 0.01
    assert await echoed(proxy) == b"hello"


async def test_a_cut_ends_connections_and_takes_none_until_it_is_mended(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"x")
    assert await reader.read(1) == b"x"
    proxy.cut()
    assert await rest(reader) == b""
    assert await echoed(proxy) == b""
    proxy.mend()
    assert await echoed(proxy) == b"hello"
    writer.close()
