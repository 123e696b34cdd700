"""The tokens between which a model thinks."""

from __future__ import annotations

from dataclasses import dataclass

from headway.errors import RequestError

MAX_MARK = 32  # tokens of a mark


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingTokens:
    """start, end: token ids that open and close the thinking, 1 to 32 each. A prompt may have opened it. start may be
    empty: the model thinks from the first token of its answer.

    Raises RequestError for a mark of another length.
    """

    start: tuple[int, ...] = ()
    end: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            mark = tuple(getattr(self, name))
            object.__setattr__(self, name, mark)
            if len(mark) > MAX_MARK or (name == "end" and not mark):
                raise RequestError(f"the {name} of the thinking must have 1 to {MAX_MARK} tokens, got {len(mark)}")
