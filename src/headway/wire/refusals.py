"""Errors that cross between processes: a kind and a text on the wire, an error of the same type on the other side."""

from __future__ import annotations

from headway.errors import (
    ContextLengthError,
    DuplicateRequestError,
    EngineDeadError,
    EnginePausedError,
    QueryError,
    QueueFullError,
    RequestError,
)

REFUSALS: dict[str, type[Exception]] = {  # kind -> type of the error; a subclass before its base class
    "duplicate": DuplicateRequestError,
    "context_length": ContextLengthError,
    "invalid": RequestError,
    "queue_full": QueueFullError,
    "paused": EnginePausedError,
    "dead": EngineDeadError,
    "query": QueryError,
    "timeout": TimeoutError,
    "value": ValueError,
}


def kind_of(error: Exception) -> str:
    """The kind of `error`. "internal": not a refusal, but a fault of the engine."""
    return next((kind for kind, cls in REFUSALS.items() if isinstance(error, cls)), "internal")


def refusal(kind: str, message: str) -> Exception:
    """The error that `Refused` or `Raised` stands for; RuntimeError for "internal"."""
    return REFUSALS.get(kind, RuntimeError)(message)
