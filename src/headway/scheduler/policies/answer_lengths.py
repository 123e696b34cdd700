"""How long answers become, by the answers that have ended."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

AT_FIRST = (64, 128, 256, 512)  # taken for ended answers until so many have ended that these are forgotten
BEYOND_ALL = 16  # tokens that an answer longer than all others may still get at least
LONGEST = 2**16  # tokens; longer answers count as answers of so many
SHARE_OF_NEWS = 8  # the estimate is made anew when one in so many of the remembered answers is new to it


class AnswerLengths:
    """The lengths of the last answers, in tokens. window: how many answers are remembered."""

    def __init__(self, window: int = 256) -> None:
        self._last = deque(AT_FIRST, maxlen=window)
        self._num_new = 0
        self._to_come = self._estimate()  # by the length so far, up to that of the longest answer

    def add(self, length: int) -> None:
        """An answer has ended."""
        self._last.append(min(length, LONGEST))
        self._num_new += 1

    def to_come(self, so_far: NDArray[np.int32]) -> NDArray[np.float64]:
        """Tokens that answers of these lengths may still get: the mean of the answers that became longer, less what is
        there. An answer longer than all may get half of the longest. int32 [N] to float64 [N]."""
        if self._num_new * SHARE_OF_NEWS >= len(self._last):
            self._to_come, self._num_new = self._estimate(), 0
        return self._to_come[np.minimum(so_far, len(self._to_come) - 1)]

    def _estimate(self) -> NDArray[np.float64]:
        lengths = np.sort(np.array(self._last, dtype=np.int64))
        means = lengths[::-1].cumsum()[::-1] / np.arange(len(lengths), 0, -1)  # of a length and all above it
        so_far = np.arange(lengths[-1])
        return np.append(means[lengths.searchsorted(so_far, side="right")] - so_far, lengths[-1] / 2 + BEYOND_ALL)
