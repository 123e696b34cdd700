"""Bounds on connections: how many are open, and how long one may take to send the head of a request."""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from headway.server.errors import ApiError

logger = logging.getLogger(__name__)

HEAD_SECONDS = 10.0  # for the head of a request, from the opening of the connection or from the head's first byte
MAX_CONNECTIONS = 16_384
ACCEPTS_PER_TURN = 64  # connections that the event loop accepts in one turn
_RESERVED_FILES = 256  # files that are no connection, and connections on their way to be refused


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns the most connections that may then be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (OSError, ValueError) as error:  # some systems name a hard limit that they do not grant
        logger.warning("the limit of open files stays %d: %s", soft, error)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, soft - _RESERVED_FILES))


async def _refuse(_scope: Scope, _receive: Receive, send: Send) -> None:
    error = ApiError(503, "too many connections are open; try again later", code="too_many_connections", retry_after=1)
    response = error.response()
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


class BoundedProtocol(H11Protocol):
    """A connection that ends if its request does not begin in time. A connection beyond `limit` is answered
    503 and closed; if there are too many of these, it is closed at once."""

    limit = MAX_CONNECTIONS
    head_seconds = HEAD_SECONDS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limit:
            self.app = _refuse
            if len(self.connections) > self.limit + _RESERVED_FILES // 2:
                transport.abort()
                return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._has_request():
            self._forget_head()
        elif self._head_timer is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        seconds = 1.0 if self.app is _refuse else self.head_seconds
        self._head_timer = self.loop.call_later(seconds, self._head_is_late)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._has_request():
            self.transport.abort()
