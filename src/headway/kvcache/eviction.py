"""The order in which cached blocks without references are evicted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WINDOW = 64  # entries read beyond the number asked for, so that a few stale entries cost no second read


class EvictionQueue:
    """Blocks in the order of their release, oldest first.

    Push, pop and remove take many blocks at once and are vectorised. Block ids are intp here: numpy takes several times
    as long with an index of int32. A removed block leaves a stale entry behind: the block's place no longer names that
    entry. When the line is full, the stale entries are squeezed out. The line is twice as long as the pool, so this
    happens at most once in `num_blocks` pushes.

        _line   [ 7 | 3 | 9 | 4 | 7 | 1 |   |   ]      _place[7] = 4: the first 7 is stale
                  ^ _head             ^ _tail
    """

    def __init__(self, num_blocks: int) -> None:
        self._line = np.zeros(2 * num_blocks, dtype=np.intp)
        self._place = np.full(num_blocks, -1, dtype=np.int64)
        self._head = 0
        self._tail = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, block: int) -> bool:
        return bool(self._place[block] >= 0)

    def push(self, blocks: NDArray[np.intp]) -> None:
        """Append blocks, none of which is queued. The first of them is evicted first."""
        if self._tail + len(blocks) > len(self._line):
            self._squeeze()
        end = self._tail + len(blocks)
        self._line[self._tail : end] = blocks
        self._place[blocks] = np.arange(self._tail, end)
        self._tail = end
        self._count += len(blocks)

    def remove(self, blocks: NDArray[np.intp]) -> None:
        """Take out queued blocks, at any place in the line."""
        self._place[blocks] = -1
        self._count -= len(blocks)

    def pop(self, count: int) -> NDArray[np.intp]:
        """Take out the `count` oldest blocks, intp [count]. At least `count` blocks must be queued."""
        assert count <= self._count, f"{count} blocks asked of {self._count}"
        blocks = self._line[self._head : self._head + count]
        if self._tail - self._head == self._count or self._all_live(blocks):
            self._head += count
            blocks = blocks.copy()
            self.remove(blocks)
            return blocks
        parts = []
        missing = count
        while missing:
            window = self._line[self._head : min(self._head + missing + _WINDOW, self._tail)]
            live = np.flatnonzero(self._place[window] == np.arange(self._head, self._head + len(window)))[:missing]
            self._head += int(live[-1]) + 1 if len(live) == missing else len(window)
            parts.append(window[live])
            missing -= len(live)
        blocks = parts[0] if len(parts) == 1 else np.concatenate(parts or [self._line[:0]])
        self.remove(blocks)
        return blocks

    def blocks(self) -> NDArray[np.intp]:
        """All queued blocks, oldest first, intp."""
        line = self._line[self._head : self._tail]
        queued: NDArray[np.intp] = line[self._place[line] == np.arange(self._head, self._tail)]
        return queued

    def _all_live(self, head: NDArray[np.intp]) -> bool:
        """Whether none of these first entries is stale."""
        return not np.count_nonzero(self._place[head] != np.arange(self._head, self._head + len(head)))

    def _squeeze(self) -> None:
        live = self.blocks()
        self._line[: len(live)] = live
        self._place[live] = np.arange(len(live))
        self._head, self._tail = 0, len(live)
