"""Errors that callers can catch."""

from __future__ import annotations


class RequestError(ValueError):
    """The request breaks a rule; the message names the value and the limit. HTTP 400."""


class DuplicateRequestError(RequestError):
    """A request with the same id is still in the engine. HTTP 409."""


class QueueFullError(RuntimeError):
    """The engine is full; try again later. HTTP 503 with Retry-After."""


class EnginePausedError(RuntimeError):
    """The engine is paused and takes no requests until it is resumed. HTTP 503 with Retry-After."""


class EngineDeadError(RuntimeError):
    """The engine has stopped and takes no more requests. HTTP 503."""


class EngineRestartingError(EngineDeadError):
    """The engine has died and is being started again; try again later. HTTP 503 with Retry-After."""


class ShuttingDownError(EngineDeadError):
    """The server stops, and takes no more requests. HTTP 503."""


class QueryError(RuntimeError):
    """The query cannot be answered: the engine has another role, or the caller is the writer's own thread."""
