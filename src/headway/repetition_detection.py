"""When an answer that repeats itself ends: the parameters of a request."""

from __future__ import annotations

from dataclasses import dataclass

from headway.errors import RequestError

MAX_PATTERN_SIZE = 1024
MAX_REPETITIONS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionDetectionParams:
    """An answer ends when its last tokens are one pattern, `min_count` times in a row. Names follow vLLM's.

    min_pattern_size, max_pattern_size: tokens of the pattern; 0 as the most turns it off, 0 as the least means 1.
    min_count: at least 2.

    Raises RequestError that names the value and the limit.
    """

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0

    def __post_init__(self) -> None:
        self._check("max_pattern_size", self.max_pattern_size, 0, MAX_PATTERN_SIZE)
        self._check("min_pattern_size", self.min_pattern_size, 0, self.max_pattern_size)
        least = 2 if self.max_pattern_size else 0
        self._check("min_count", self.min_count, least, MAX_REPETITIONS)

    def _check(self, name: str, value: int, low: int, high: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            limit = f"[{low}, {high}]" + (" (max_pattern_size)" if name == "min_pattern_size" else "")
            raise RequestError(f"repetition_detection.{name} must be an integer in {limit}, got {value!r}")
