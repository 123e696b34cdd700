"""The errors that callers get."""

from __future__ import annotations


class RequestError(ValueError):
    """The request cannot be accepted as it is; the message names the value and the limit. HTTP 400."""


class DuplicateRequestError(RequestError):
    """A request of this id is still in the engine. HTTP 409."""


class QueueFullError(RuntimeError):
    """The engine holds as many requests as it may; try again later. HTTP 503 with Retry-After."""


class EnginePausedError(RuntimeError):
    """The engine is paused and takes no requests until it is resumed. HTTP 503 with Retry-After."""


class EngineDeadError(RuntimeError):
    """The engine has stopped and takes no more requests. HTTP 503."""


class QueryError(RuntimeError):
    """A query that cannot be answered: asked of an engine of the wrong role, or by the thread that must answer it."""
