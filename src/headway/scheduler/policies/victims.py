"""Which request gives up slot and blocks when they are lacking.

All functions take a table and rows of it, intp [N], N >= 1: slots whose occupants can be preempted.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headway.config import SchedulerConfig
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.slot_table import SlotTable


class VictimPolicy(Protocol):
    """Chooses the request to preempt."""

    def choose(self, table: SlotTable, rows: NDArray[np.intp]) -> int:
        """One of these slots."""


class LeastWaste:
    """The request with the fewest computed tokens outside the prefix cache, as these are computed twice; among equals
    the last in line."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def choose(self, table: SlotTable, rows: NDArray[np.intp]) -> int:
        """One of these slots."""
        waste = table.num_computed[rows] - table.num_published[rows] * self._block_size
        return _last_in_line(table, rows[waste == waste.min()])


class LastInLine:
    """The request that is served last."""

    def choose(self, table: SlotTable, rows: NDArray[np.intp]) -> int:
        """One of these slots."""
        return _last_in_line(table, rows)


def displaceable(table: SlotTable, rows: NDArray[np.intp], entry: Entry) -> NDArray[np.bool_]:
    """Which of these slots a waiting request may take from their occupants, bool [N]: the occupant has a lower priority
    and stands behind it in line.

    With ageing these are two conditions. Only both together keep two requests from evicting each other for ever: a
    victim can neither displace in return, nor be admitted again before the request that displaced it.
    """
    rank, _ = entry.place_in_line
    less_urgent: NDArray[np.bool_] = (table.priority[rows] > entry.request.priority) & (table.rank[rows] > rank)
    return less_urgent


def candidates(table: SlotTable, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """The slots that may be chosen at all, in the order given.

    Never the first in line while there is another: it runs until it ends, and then another request is first. So all get
    to their end, and no two requests evict each other for ever. Of the others, only requests of the lowest priority.
    """
    if len(rows) == 1:
        return rows
    others = rows[rows != _first_in_line(table, rows)]
    priority = table.priority[others]
    lowest: NDArray[np.intp] = others[priority == priority.max()]
    return lowest


def victim_policy_of(config: SchedulerConfig) -> VictimPolicy:
    """The policy that is configured."""
    return LeastWaste(config.block_size) if config.victim == "least-waste" else LastInLine()


def _first_in_line(table: SlotTable, rows: NDArray[np.intp]) -> int:
    rank = table.rank[rows]
    equals = rows[rank == rank.min()]
    return int(equals[table.seniority[equals].argmin()])


def _last_in_line(table: SlotTable, rows: NDArray[np.intp]) -> int:
    rank = table.rank[rows]
    equals = rows[rank == rank.max()]
    return int(equals[table.seniority[equals].argmax()])
