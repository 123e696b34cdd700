"""The queue of requests that have no slot."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from headway.scheduler.state.entry import Entry

LOOKAHEAD = 16  # requests, from the head on, that a pass may look at
RUN_LENGTH = 256  # short enough to insert into at no cost worth naming, long enough that there are few


class WaitingQueue:
    """Requests in order of their place in line. A preempted request returns to its old place.

    A sorted list in runs of at most RUN_LENGTH, each behind the one before it:

        [a b c ... p ...]  [q r s ...]  [t u ...]
         \\_ window _/

    Any request, wherever it stands, comes and goes by two binary searches and a move within one run. A request that
    has left leaves nothing behind: there are no dead places to skip or to clear away in bursts.
    """

    def __init__(self) -> None:
        self._runs: list[list[Entry]] = []  # none is empty
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Entry]:
        """All waiting requests, in order."""
        for run in self._runs:
            yield from run

    def push(self, entry: Entry) -> None:
        """Queue a request that waits and is not queued. Its place in line must not change while it is."""
        self._count += 1
        if not self._runs:
            self._runs.append([entry])
            return
        index = min(bisect_left(self._runs, entry.place_in_line, key=_last_place), len(self._runs) - 1)
        run = self._runs[index]
        insort(run, entry, key=_place)
        if len(run) > RUN_LENGTH:
            middle = len(run) // 2
            self._runs[index : index + 1] = run[:middle], run[middle:]

    def head(self) -> Entry | None:
        """The request to be served next; it stays queued."""
        return self._runs[0][0] if self._runs else None

    def window(self) -> list[Entry]:
        """The first LOOKAHEAD requests, in order; all if fewer wait. The list is a copy: the caller may push and take
        while walking along it."""
        window: list[Entry] = []
        for run in self._runs:
            window += run[: LOOKAHEAD - len(window)]
            if len(window) == LOOKAHEAD:
                break
        return window

    def take(self, entry: Entry) -> None:
        """Take a queued request out, wherever it stands."""
        place = entry.place_in_line
        index = bisect_left(self._runs, place, key=_last_place)
        assert index < len(self._runs), f"no request waits at {place}"
        run = self._runs[index]
        at = bisect_left(run, place, key=_place)
        assert run[at] is entry, f"another request waits at {place}, or none"
        del run[at]
        if not run:
            del self._runs[index]
        self._count -= 1


def _place(entry: Entry) -> tuple[float, int]:
    return entry.place_in_line


def _last_place(run: list[Entry]) -> tuple[float, int]:
    return run[-1].place_in_line
