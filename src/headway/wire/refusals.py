"""Errors that cross: the name of a kind and a text on this side, the same error on the other."""

from __future__ import annotations

from headway.errors import (
    DuplicateRequestError,
    EngineDeadError,
    EnginePausedError,
    QueryError,
    QueueFullError,
    RequestError,
)

REFUSALS: dict[str, type[Exception]] = {  # kind -> what the engine raised, the more special first
    "duplicate": DuplicateRequestError,
    "invalid": RequestError,
    "queue_full": QueueFullError,
    "paused": EnginePausedError,
    "dead": EngineDeadError,
    "query": QueryError,
    "timeout": TimeoutError,
    "value": ValueError,
}


def kind_of(error: Exception) -> str:
    """The kind that stands for `error`; "internal" is no refusal but a fault of ours."""
    return next((kind for kind, cls in REFUSALS.items() if isinstance(error, cls)), "internal")


def refusal(kind: str, message: str) -> Exception:
    """The error that `Refused` or `Raised` stands for; RuntimeError for "internal"."""
    return REFUSALS.get(kind, RuntimeError)(message)
