"""Deadlines: by when a request must have got on."""

from __future__ import annotations

import heapq


class Deadlines:
    """At most one deadline per uid, in seconds on the clock of `Scheduler.apply`.

    A heap of (when, uid). A deadline that was cleared or set anew stays in the heap until its time comes, or until such
    entries outnumber the valid deadlines.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._when: dict[int, float] = {}  # the valid deadlines

    def __len__(self) -> int:
        return len(self._when)

    def set(self, uid: int, when: float) -> None:
        """From now on this uid's deadline is `when`, whatever it was before."""
        assert when == when, f"the deadline of uid {uid} is not a number"
        self._when[uid] = when
        heapq.heappush(self._heap, (when, uid))
        self._compact()

    def clear(self, uid: int) -> None:
        """This uid has no deadline any more; nothing happens if it had none."""
        if self._when.pop(uid, None) is not None:
            self._compact()

    @property
    def next(self) -> float | None:
        """The earliest deadline; None when there is none. O(1), amortised."""
        heap = self._heap
        while heap:
            when, uid = heap[0]
            if self._when.get(uid) == when:
                return when
            heapq.heappop(heap)
        return None

    def expired(self, now: float) -> list[int]:
        """Removes the deadlines up to `now`, that moment included. Returns their uids, the earliest deadline first,
        and the lowest uid first among equals."""
        uids = []
        while (when := self.next) is not None and when <= now:
            uid = heapq.heappop(self._heap)[1]
            del self._when[uid]
            uids.append(uid)
        return uids

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._when) + 64:
            self._heap = [(when, uid) for uid, when in self._when.items()]
            heapq.heapify(self._heap)
