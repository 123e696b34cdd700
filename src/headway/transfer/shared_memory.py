"""Reads the KV memory of a peer on the same host: one copy, from the mapping of the peer's memory."""

from __future__ import annotations

import numpy as np

from headway.transfer.layout import KVLayout
from headway.transfer.memory import KVMemory, MemoryHandle, PeerMemory
from headway.transfer.reader import Slice, runs


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
        first, to, count = (one.tolist() for one in runs(part.sources, part.targets))
        for source, target in zip(self._peer.planes, self._memory.planes, strict=True):
            for source_start, target_start, length in zip(first, to, count, strict=True):
                if self._interrupted:
                    raise ConnectionAbortedError("the peer is gone")
                here, there = slice(target_start, target_start + length), slice(source_start, source_start + length)
                np.copyto(target[:, here], source[:, there])

    def interrupt(self) -> None:
        """See `Reader`."""
        self._interrupted = True

    def close(self) -> None:
        """See `Reader`."""
        self._peer.close()
