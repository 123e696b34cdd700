"""Finds an answer that repeats itself."""

from __future__ import annotations

import numpy as np

from headway.repetition_detection import RepetitionDetectionParams


class RepetitionScanner:
    """Looks, token by token, for a pattern that stands `min_count` times in a row at the end of an answer.

    A pattern of p tokens stands there c times if each of the last p * (c - 1) tokens is the token p places before it.
    So a count per p of such tokens, without a gap, is all there is to keep.
    """

    def __init__(self, params: RepetitionDetectionParams) -> None:
        longest = params.max_pattern_size
        self._least = max(params.min_pattern_size, 1)
        self._needed = np.arange(1, longest + 1) * (params.min_count - 1)
        self._alike = np.zeros(longest, np.int64)  # of p - 1: how many of the last tokens are the token p places before
        self._last = np.full(longest, -1, np.int64)  # the last tokens, newest first; -1: there is none

    def feed(self, token: int) -> bool:
        """Whether the answer repeats itself with this token."""
        if not len(self._last):
            return False
        self._alike += 1
        self._alike[self._last != token] = 0
        self._last[1:] = self._last[:-1]
        self._last[0] = token
        return bool((self._alike >= self._needed)[self._least - 1 :].any())
