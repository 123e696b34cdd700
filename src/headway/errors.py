"""Errors that callers can catch."""

from __future__ import annotations


class RequestError(ValueError):
    """The request breaks a rule; the message names the value and the limit. HTTP 400."""


class ContextLengthError(RequestError):
    """Prompt and output are longer than the model's context. HTTP 400 with the code "context_length_exceeded"."""

    @classmethod
    def of(cls, max_model_len: int, however: str) -> ContextLengthError:
        """The error in the words that clients look for, which are "maximum context length is" and "prompt is too long".
        however: what is too long, and the remedy."""
        return cls(f"This model's maximum context length is {max_model_len} tokens. However, {however}")


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
