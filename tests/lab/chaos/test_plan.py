"""The plan of faults comes from the seed alone."""

import itertools

from headway_lab.chaos.plan import IDLE_S, FaultKind, plan
from headway_lab.chaos.topology import SERVERS, WIRES


def test_the_same_seed_gives_the_same_plan_and_another_seed_another_one() -> None:
    assert plan(3, 200.0, SERVERS, WIRES) == plan(3, 200.0, SERVERS, WIRES) != plan(4, 200.0, SERVERS, WIRES)


def test_every_kind_of_fault_and_every_target_comes() -> None:
    faults = plan(0, 300.0, SERVERS, WIRES)
    assert {fault.kind for fault in faults} == set(FaultKind)
    assert {fault.kind for fault in faults[: len(FaultKind)]} == set(FaultKind)
    for kind in (FaultKind.KILL_API, FaultKind.KILL_ENGINE, FaultKind.PAUSE):
        assert {fault.target for fault in faults if fault.kind is kind} == set(SERVERS)
    assert {fault.target for fault in faults if fault.kind is FaultKind.CUT} == set(WIRES)


def test_faults_begin_in_order_within_the_time_and_nothing_begins_while_all_is_idle() -> None:
    faults = plan(1, 300.0, SERVERS, WIRES)
    assert all(fault.at < 300.0 for fault in faults)
    for fault, after in itertools.pairwise(faults):
        assert after.at >= fault.at + (IDLE_S if fault.kind is FaultKind.IDLE else 0.0)
