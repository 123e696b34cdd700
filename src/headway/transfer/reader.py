"""One way to read blocks of a peer. Its kinds: shared memory, NIXL, TCP."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from headway.scheduler.batch import IntArray


class ReadError(Exception):
    """These blocks have not come, or are damaged; the reader is of use for others."""


class Slice(NamedTuple):
    """Blocks of one request to be read at once. uid: D's.

    reference, generation, first: what P needs to find them: the columns of the prompt from `first` on.
    sources, targets: int32, equally many: blocks of P, and blocks of D.
    """

    uid: int
    reference: str
    generation: int
    first: int
    sources: IntArray
    targets: IntArray


def runs(sources: IntArray, targets: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Blocks that follow each other on both sides can travel at once: first sources, first targets, and lengths."""
    starts = np.flatnonzero((np.diff(sources, prepend=-2) != 1) | (np.diff(targets, prepend=-2) != 1))
    return sources[starts], targets[starts], np.diff(starts, append=len(sources)).astype(np.int32)


class Reader(Protocol):
    """Reads from one peer. One thread reads; any thread may interrupt."""

    def read(self, part: Slice) -> None:
        """Bring these blocks. Returns when they are there. After it has returned or raised, nothing writes to the
        targets any more: an implementation whose device could still write must wait, or close the device first.

        Raises ReadError; OSError or ValueError if the reader is of no use any more.
        """

    def interrupt(self) -> None:
        """Let a `read` that waits for the peer fail soon, and every later one at once. Any thread."""

    def close(self) -> None:
        """Give up what it has of the peer. After the last `read`."""
