"""The rules that can be chosen, one object each."""

from __future__ import annotations

from dataclasses import dataclass

from headway.config import SchedulerConfig
from headway.scheduler.policies.allocation import Allocation, DynamicAllocation
from headway.scheduler.policies.line import Line, line_of
from headway.scheduler.policies.reserve import NoReserve, Reserve, reserve_of
from headway.scheduler.policies.victims import VictimPolicy, victim_policy_of


@dataclass(frozen=True, slots=True)
class Policies:
    """allocation: when a request gets its blocks. line: the order of service. reserve: blocks that an admission must
    leave for requests that decode. victims: which request is preempted."""

    allocation: Allocation
    line: Line
    reserve: Reserve
    victims: VictimPolicy

    @classmethod
    def of(cls, config: SchedulerConfig, allocation: Allocation | None = None) -> Policies:
        """The rules that the configuration names. If requests do not grow, no blocks are reserved."""
        chosen = allocation or DynamicAllocation()
        reserve = reserve_of(config) if chosen.grows else NoReserve()
        return cls(chosen, line_of(config), reserve, victim_policy_of(config))
