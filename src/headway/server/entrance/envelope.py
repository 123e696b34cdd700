"""What every answer gets, whatever its route: the header X-Request-Id, a place in the metrics of HTTP."""

from __future__ import annotations

import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headway.server.errors import as_api_error
from headway.server.metrics.server_metrics import ServerMetrics

HEADER = "X-Request-Id"
MAX_ID = 256  # characters
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Envelope:
    """ASGI middleware. It also answers errors that no handler took: they are a 500 in the form of all errors.

    The X-Request-Id of a request comes back in its answer. A request without an id, or with an id that is longer than
    `MAX_ID` or has characters that are not printable ASCII, gets a new one. The id names no request in the engine:
    proxies send one id with several requests.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _valid(Headers(scope=scope).get(HEADER)) or uuid.uuid4().hex
        begin = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status is not None:
                raise  # the status has been sent: only the end of the connection can tell
            await as_api_error(error).response(scope["path"])(scope, receive, send_with_id)
        finally:
            if status is not None:
                method = scope["method"] if scope["method"] in _METHODS else "other"
                path = getattr(scope.get("route"), "path", "none")
                self._metrics.answered(method, path, status, time.perf_counter() - begin)


def _valid(request_id: str | None) -> str | None:
    usable = request_id is not None and 0 < len(request_id) <= MAX_ID
    return request_id if usable and request_id.isascii() and request_id.isprintable() else None  # type: ignore[union-attr]
