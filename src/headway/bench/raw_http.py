"""HTTP/1.1 over plain sockets, with requests that are made beforehand: a client that costs next to no time."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

END_OF_STREAM = b"\r\n0\r\n\r\n"  # the last chunk
_MOST_HEAD = 65_536  # bytes
_UNREAD = 4096  # bytes that a client takes although it does not read


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None, url
        return cls(parts.hostname, parts.port)


class Answer(NamedTuple):
    """The status and the body of an answer."""

    status: int
    body: bytes


def get(path: str) -> bytes:
    """A request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def post(path: str, body: bytes | dict[str, Any]) -> bytes:
    """A request with a body of JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


class Connection:
    """A connection that is kept alive. Its methods raise OSError or EOFError if the server closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: Address) -> Self:
        return cls(*await asyncio.open_connection(*address, limit=_MOST_HEAD))

    @classmethod
    async def open_deaf(cls, address: Address) -> Self:
        """A connection that takes next to nothing of an answer before it is read."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UNREAD)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        return cls(*await asyncio.open_connection(sock=sock, limit=_UNREAD))

    async def send(self, request: bytes) -> None:
        self._writer.write(request)
        await self._writer.drain()

    async def ask(self, request: bytes) -> Answer:
        """The answer to a request, which is no stream."""
        await self.send(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return Answer(int(head[9:12]), await self._reader.readexactly(length))

    async def read(self) -> bytes:
        """What has come, or comes next."""
        data = await self._reader.read(2**18)
        if not data:
            raise EOFError("the server has closed the connection")
        return data

    async def read_stream(self) -> bytes:
        """All bytes of a streamed answer, its head included."""
        data = bytearray()
        while not data.endswith(END_OF_STREAM):
            data += await self.read()
        return bytes(data)

    def close(self) -> None:
        self._writer.transport.abort()
