"""Asks every request for its key before anything of its body is read."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from headway.server.entrance.doors import OPEN_PATHS
from headway.server.entrance.keys import Keys, Tenant
from headway.server.errors import ApiError

MAX_UNREAD = 16 * 2**20  # bytes of a refused body that a connection may go on to bring, and that are thrown away
_ANTHROPIC = "/v1/messages"  # Anthropic's clients show their key in the header x-api-key
_CODE = "invalid_api_key"


class KeyCheck:
    """ASGI middleware. It refuses with 401, and sets `request.state.tenant` of what it lets through.

    protected: paths of OPEN_PATHS that need a key all the same. Every other path needs one, also a path that does not
    exist.
    """

    def __init__(self, app: ASGIApp, keys: Keys, protected: Iterable[str] = ()) -> None:
        self._app = app
        self._keys = keys
        self._open = OPEN_PATHS - set(protected)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._path(scope) in self._open):
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            key = self._keys.find(_shown_key(headers, self._path(scope)))
            if key is None:
                raise ApiError(401, "the API key is not valid here: ask the operator of this server", code=_CODE)
        except ApiError as refusal:
            response = refusal.response(self._path(scope))
            response.headers["WWW-Authenticate"] = "Bearer"
            if _goes_on_for_long(headers):
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        scope.setdefault("state", {})["tenant"] = self._keys.tenant_of(key)
        await self._app(scope, receive, send)

    @staticmethod
    def _path(scope: Scope) -> str:
        """The path without the root path of a proxy, which may have cut it off or not."""
        path, root = str(scope["path"]), str(scope.get("root_path", ""))
        return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _shown_key(headers: Headers, path: str) -> str:
    """The key that a request shows. Raises ApiError if it shows none, or several."""
    name = "Authorization"
    if name not in headers and (path == _ANTHROPIC or path.startswith(f"{_ANTHROPIC}/")) and "x-api-key" in headers:
        name = "x-api-key"
    values = headers.getlist(name)
    if len(values) != 1:
        problem = "has no API key" if not values else f"has the header {name} {len(values)} times"
        raise ApiError(401, f"the request {problem}: send one header, Authorization: Bearer KEY", code=_CODE)
    if name == "x-api-key":
        return values[0].strip()
    scheme, _, key = values[0].strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise ApiError(401, "the header Authorization must be: Bearer KEY", code=_CODE)
    return key.strip()


def _goes_on_for_long(headers: Headers) -> bool:
    """Whether the body of a refused request is so long that its connection is not worth keeping."""
    return "transfer-encoding" in headers or int(headers.get("content-length", 0)) > MAX_UNREAD


def salt_of(request: Request, cache_salt: str | None) -> str | None:
    """The salt for the engine, of the tenant of a request and of the `cache_salt` in its body."""
    tenant: Tenant | None = getattr(request.state, "tenant", None)
    return cache_salt if tenant is None else tenant.join(cache_salt)
