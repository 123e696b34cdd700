"""What a client saw of one request, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Token = tuple[str, float]  # text and log-probability


@dataclass(frozen=True, slots=True)
class Piece:
    """More of an answer. tokens: where the request asks for log-probabilities."""

    choice: int
    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """The server says that this choice is complete."""

    choice: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The server says that the request has failed: an error event, or an HTTP error with its status."""

    message: str
    status: int | None = None


@dataclass(frozen=True, slots=True)
class End:
    """Nothing can follow.

    done: the server said so: the whole body of an answer or of an error, or "[DONE]". cut: the connection ended before
    that. refused: there was no connection. left: the client went. late: the client's patience was over.
    """

    kind: Literal["done", "cut", "refused", "left", "late"]
    detail: str = ""


Event = Piece | Finish | Failure | End


@dataclass(slots=True)
class History:
    """One request.

    case: its number among the cases. server: that it was sent to. is_first_token: it was sent to a prefill engine, for
    the first token of the answer. started, ended: seconds on the clock of the run.
    """

    number: int
    case: int
    server: str
    started: float
    way: str = "alone"
    is_first_token: bool = False
    ended: float = 0.0
    events: list[Event] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """In a word or two, for the table."""
        last = self.events[-1] if self.events else None
        if not isinstance(last, End):
            return "no end"
        if last.kind != "done":
            return last.kind
        if failures := [event for event in self.events if isinstance(event, Failure)]:
            return "error event" if failures[0].status is None else f"HTTP {failures[0].status}"
        if any(isinstance(event, Finish) and event.reason == "abort" for event in self.events):
            return "aborted by a pause"
        return "complete"
