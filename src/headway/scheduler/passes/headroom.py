"""Blocks that an admission must not take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headway.scheduler.policies.reserve import Reserve
from headway.scheduler.policies.victims import displaceable
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.state import State


class Headroom:
    """Blocks that an admission must leave available for the requests that decode; valid for one pass.

    decoding: their slots, intp.
    """

    def __init__(self, state: State, reserve: Reserve, decoding: NDArray[np.intp]) -> None:
        self._table = state.table
        self._reserve = reserve
        self._decoding = decoding
        self._for_all: int | None = None
        self._lowest: int | None = None  # priority of running requests, where they may be displaced at all
        if state.config.enable_priority_preemption and state.priorities:
            self._lowest = max(state.priorities)

    def left_by(self, entry: Entry) -> int:
        """Blocks this request must leave available. Requests that it may displace are not counted."""
        if not len(self._decoding):
            return 0
        if self._may_displace(entry):
            stay = ~displaceable(self._table, self._decoding, entry)
            return self._reserve.blocks(self._table, self._decoding[stay])
        if self._for_all is None:
            self._for_all = self._reserve.blocks(self._table, self._decoding)
        return self._for_all

    def shuts_out(self, entries: Sequence[Entry], num_available: int) -> bool:
        """True if no entry could get a block from `num_available`. Checking the first entry is enough unless one may
        displace others."""
        return self.left_by(entries[0]) >= num_available and not any(map(self._may_displace, entries))

    def _may_displace(self, entry: Entry) -> bool:
        return self._lowest is not None and self._lowest > entry.request.priority
