"""The queue of requests that have no slot."""

from __future__ import annotations

import heapq

from headway.request import RequestStatus
from headway.scheduler.entry import Entry

_QUEUED = (RequestStatus.WAITING, RequestStatus.PREEMPTED)


class WaitingQueue:
    """Requests by priority, then by arrival. A preempted request returns to the place its arrival gives it.

    A request that ends while it waits is only counted out; its place is dropped when it reaches the head, or when
    dead places outnumber the living.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Entry]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, entry: Entry) -> None:
        """Queue a request that waits."""
        assert entry.status in _QUEUED
        heapq.heappush(self._heap, (entry.place_in_line, entry))
        self._count += 1

    def head(self) -> Entry | None:
        """The request to be served next; it stays queued."""
        while self._heap:
            entry = self._heap[0][1]
            if entry.status in _QUEUED:
                return entry
            heapq.heappop(self._heap)
        return None

    def pop(self) -> Entry:
        """Take the request to be served next."""
        entry = self.head()
        assert entry is not None, "nobody waits"
        heapq.heappop(self._heap)
        self._count -= 1
        return entry

    def forget(self, entry: Entry) -> None:
        """Count out a queued request that has just ended: its status says so already."""
        assert entry.status is RequestStatus.FINISHED
        self._count -= 1
        if len(self._heap) > 2 * self._count + 64:
            self._heap = [item for item in self._heap if item[1].status in _QUEUED]
            heapq.heapify(self._heap)
