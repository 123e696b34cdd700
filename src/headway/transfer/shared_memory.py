"""Reads the KV memory of a peer on the same host: one copy, from the mapping of the peer's memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from headway.scheduler.batch import IntArray
from headway.transfer.layout import KVLayout
from headway.transfer.memory import KVMemory, MemoryHandle, PeerMemory
from headway.transfer.reader import Slice


class SharedMemoryReader:
    """A `Reader`. Raises OSError, when it is made, if the peer's memory cannot be mapped here.

    It needs no fence on P's side: what it copies counts only if the lease was there all the time.
    """

    def __init__(self, handle: MemoryHandle, theirs: KVLayout, memory: KVMemory) -> None:
        self._peer = PeerMemory(handle, theirs)
        self._memory = memory
        self._interrupted = False

    def read(self, part: Slice) -> None:
        """See `Reader`."""
        runs = list(_runs(part.sources, part.targets))
        for source, target in zip(self._peer.planes, self._memory.planes, strict=True):
            for start, to, count in runs:
                if self._interrupted:
                    raise ConnectionAbortedError("the peer is gone")
                np.copyto(target[:, to : to + count], source[:, start : start + count])

    def interrupt(self) -> None:
        """See `Reader`."""
        self._interrupted = True

    def close(self) -> None:
        """See `Reader`."""
        self._peer.close()


def _runs(sources: IntArray, targets: IntArray) -> Iterator[tuple[int, int, int]]:
    """(first source, first target, length) of blocks that follow each other on both sides: one copy each."""
    ends = np.flatnonzero((np.diff(sources) != 1) | (np.diff(targets) != 1)) + 1
    starts = [0, *ends.tolist()]
    for start, end in zip(starts, [*starts[1:], len(sources)], strict=True):
        yield int(sources[start]), int(targets[start]), end - start
