"""A client request in progress, as the server reads it: wherever its prompts are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from headway.outputs import RequestDelta, RequestOutput


@dataclass(frozen=True, slots=True)
class Update:
    """New output of prompt `prompt_index` of a client request: a delta if it streams, else the complete output."""

    prompt_index: int
    output: RequestDelta | RequestOutput


class Pending(ABC):
    """One client request in progress: one or more prompts, each with `sampling.n` answers.

    Iterating gives lists of updates, in order, and ends when every answer is complete. It raises RequestError,
    DuplicateRequestError, QueueFullError, EnginePausedError or EngineDeadError if an engine refuses the request (a
    form that cannot be compiled, too) or is shut down, RequestFailedError if an answer ends in an error; then the other
    answers are aborted. An answer that a pause cuts short is complete, with finish_reason "abort". A refusal always
    comes before any update.
    """

    def __aiter__(self) -> Self:
        return self

    @abstractmethod
    async def __anext__(self) -> list[Update]:
        """The updates for one turn."""

    @property
    @abstractmethod
    def accepted(self) -> bool:
        """Whether the first answers have been taken."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether no more updates will come. Updates that have come may still have to be fetched."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Abort the answers that are unfinished. Idempotent."""
