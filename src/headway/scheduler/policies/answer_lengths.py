"""How long answers become, by the answers that have ended."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

AT_FIRST = (64, 128, 256, 512)  # taken for ended answers until so many have ended that these are forgotten
AS_GOOD_AS_ENDED = 16  # tokens that an answer longer than all others is expected to get at least


class AnswerLengths:
    """The lengths of the last answers, in tokens. window: how many answers are remembered."""

    def __init__(self, window: int = 256) -> None:
        self._last = deque(AT_FIRST, maxlen=window)
        self._sorted: NDArray[np.int64] | None = None  # None: to be made anew
        self._means: NDArray[np.float64] = np.zeros(0)  # of the lengths from this place on

    def add(self, length: int) -> None:
        """An answer has ended."""
        self._last.append(length)
        self._sorted = None

    def to_come(self, so_far: NDArray[np.int32]) -> NDArray[np.float64]:
        """Tokens that answers of these lengths may still get: the mean of the answers that became longer, less what is
        there. An answer longer than all may become half as long again. int32 [N] to float64 [N]; O(N log window)."""
        if self._sorted is None:
            self._sorted = np.sort(np.array(self._last, dtype=np.int64))
            sums = self._sorted[::-1].cumsum()[::-1]
            self._means = np.append(sums / np.arange(len(sums), 0, -1), 0.0)  # no answer is longer than the last
        expected = self._means[self._sorted.searchsorted(so_far, side="right")]
        return np.where(expected > 0, expected - so_far, so_far / 2 + AS_GOOD_AS_ENDED)
