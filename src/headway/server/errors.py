"""Errors as clients see them: an HTTP status and OpenAI's error body."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from headway.client.engine_client import RequestFailedError
from headway.error_text import describe
from headway.errors import (
    ContextLengthError,
    DuplicateRequestError,
    EngineDeadError,
    EnginePausedError,
    EngineRestartingError,
    QueryError,
    QueueFullError,
    RequestError,
    ShuttingDownError,
)
from headway.server.error_codes import ERROR_CODES

logger = logging.getLogger(__name__)


class ClientDisconnected(Exception):
    """The client has closed the connection before its response; no response can reach it."""


RETRY_AFTER_S = 1  # a full queue has a place again as soon as any request ends
PAUSED_RETRY_AFTER_S = 5  # a change of weights takes seconds
RESTART_RETRY_AFTER_S = 5  # so does loading the model

_ANTHROPIC = "/v1/messages/"  # begins the paths of the Messages API, behind the root path
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An HTTP status and an error body. The names are those of OpenAI's error body.

    code: of ERROR_CODES, with its status; None: the status, and `param`, say all.
    retry_after: seconds. allow: the methods that the path has. details: what clients of Anthropic's API look at.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        allow: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        assert code is None or ERROR_CODES[code].status == status, f"{code} has no status {status} in ERROR_CODES"
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.allow = allow
        self.details = details

    def body(self) -> dict[str, dict[str, str | None]]:
        """{"error": {...}}"""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic_body(self) -> dict[str, Any]:
        """The same in the form of Anthropic's API."""
        kind = _ANTHROPIC_KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        error: dict[str, Any] = {"type": kind, "message": self.message}
        if self.details is not None:
            error["details"] = self.details
        return {"type": "error", "error": error}

    def response(self, path: str = "") -> Response:
        """path: of the request. The paths of the Messages API answer errors in its own form."""
        given = {"Retry-After": self.retry_after, "Allow": self.allow}
        headers = {name: str(value) for name, value in given.items() if value is not None}
        body = self.anthropic_body() if _ANTHROPIC in f"{path}/" else self.body()
        return Response(msgspec.json.encode(body), self.status, headers, "application/json")


def as_api_error(error: Exception) -> ApiError:
    """The status and body for `error`; 500 for a type that is not listed here."""
    match error:
        case ApiError():
            return error
        case ValidationError():
            message, field = describe(error)
            return ApiError(400, message, param=field)
        case RequestError():
            return _bad_request(error)
        case QueueFullError():
            return ApiError(503, str(error), code="queue_full", retry_after=RETRY_AFTER_S)
        case EnginePausedError():
            return ApiError(503, str(error), code="engine_paused", retry_after=PAUSED_RETRY_AFTER_S)
        case EngineDeadError():
            return _no_engine(error)
        case RequestFailedError():
            return ApiError(500, str(error), code=error.code)
        case QueryError():
            return ApiError(409, str(error), code="wrong_role")
        case TimeoutError():
            return ApiError(504, str(error), code="timeout")
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), allow=(error.headers or {}).get("Allow"))
    logger.error("unexpected error", exc_info=error)
    return ApiError(500, f"internal error: {type(error).__name__}", code="internal_error")


def _bad_request(error: RequestError) -> ApiError:
    match error:
        case DuplicateRequestError():
            return ApiError(409, str(error), code="duplicate_request_id", param="request_id")
        case ContextLengthError():
            return ApiError(400, str(error), code="context_length_exceeded")
    return ApiError(400, str(error))


def _no_engine(error: EngineDeadError) -> ApiError:
    if isinstance(error, EngineRestartingError):
        return ApiError(503, str(error), code="engine_restarting", retry_after=RESTART_RETRY_AFTER_S)
    code = "shutting_down" if isinstance(error, ShuttingDownError) else "engine_dead"
    return ApiError(503, str(error), code=code)


def _without_route(request: Request, error: HTTPException) -> ApiError:
    """The answer for a path, or a method of a path, that is not served."""
    what, known = f"{request.method} {request.url.path}", as_api_error(error)
    match error.status_code:
        case 404:
            known.message, known.code = f"there is no {what} here: see /docs for the paths", "not_found"
        case 405:
            known.message, known.code = f"{what} is not allowed: this path takes {known.allow}", "method_not_allowed"
    return known


def install(app: FastAPI) -> None:
    """Make `app` answer every error in this form."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return _without_route(request, error).response(request.url.path)
        return as_api_error(error).response(request.url.path)

    async def disconnected(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # reaches no client; the number is for the access log

    app.add_exception_handler(ClientDisconnected, disconnected)
    app.add_exception_handler(ClientDisconnect, disconnected)
    for cls in (
        *(ApiError, ValidationError, HTTPException, TimeoutError, RequestFailedError),
        *(RequestError, QueueFullError, EnginePausedError, EngineDeadError, QueryError),
        Exception,
    ):
        app.add_exception_handler(cls, handle)
