"""The end of a run without faults: every request must end within a bounded number of steps, and hold nothing then."""

from __future__ import annotations

import math

from headway.config import Role
from headway.simulation.events import Event
from headway.simulation.history import Violation, require
from headway.simulation.simulation import Simulation


def calm(simulation: Simulation) -> None:
    """Run until no request is left. Steps, jobs and transfers succeed; every other reservation starts, the rest expire.

    Raises Violation if a request never ends, or if a slot or block is still held at the end.
    """
    simulation.counts["calm"] += 1
    if simulation.core.paused:
        simulation.happen(Event("resume"))
    if simulation.core.held:
        simulation.happen(Event("lift_hold"))
    turns = _turns_enough(simulation)
    while _holds_any(simulation):
        require(turns > 0, "endless", f"{simulation.core.snapshot}")
        turns -= 1
        serve_partner(simulation)
        _serve_connector(simulation)
        for slot in list(simulation.core.quarantine.slots):
            simulation.happen(Event("acknowledge", (slot, 0)))
        _work(simulation)
    check_empty(simulation)


def _holds_any(simulation: Simulation) -> bool:
    """Whether requests live, or anything is held for or by others than requests."""
    partner, connector, quarantine = simulation.partner, simulation.connector, simulation.core.quarantine
    lives = simulation.history.live or simulation.in_flight
    return bool(lives or partner.leases or connector.holds_any or quarantine.slots)


def _turns_enough(simulation: Simulation) -> int:
    """The first request in line is never preempted. So requests end one by one, chunk by chunk, token by token."""
    config, live = simulation.config, simulation.history.live
    return 20 + len(live) * (2 * config.max_model_len + 4)


def serve_partner(simulation: Simulation) -> None:
    """Jobs are done, KV is sent, and every other reservation starts."""
    for uid, life in list(simulation.history.live.items()):
        if life.preparing:
            simulation.happen(Event("prepared", (uid, 0)))
    for uid in list(simulation.partner.leases):
        simulation.happen(Event("sent", (uid, 0)))
    for uid in [uid for uid in simulation.partner.reservations if uid % 2]:
        simulation.happen(Event("start_prefill" if simulation.role is Role.PREFILL else "start_decode", (uid,)))


def _serve_connector(simulation: Simulation) -> None:
    connector = simulation.connector
    for uid in {*connector.pulls, *connector.quarantined}:
        simulation.happen(Event("received", (uid, uid % 3)))
    for uid in list(connector.lent):
        simulation.happen(Event("consume", (uid, 0)))


def _work(simulation: Simulation) -> None:
    """Launch steps up to the depth, and take one result. If there is no step, let time pass."""
    while len(simulation.in_flight) < simulation.setting.depth:
        before = len(simulation.in_flight), simulation.core.snapshot.num_preemptions
        simulation.happen(Event("launch"))
        if before == (len(simulation.in_flight), simulation.core.snapshot.num_preemptions):
            break
    if simulation.in_flight:
        simulation.happen(Event("answer", (0,)))
    elif simulation.history.live and not simulation.partner.leases and not simulation.connector.pulls:
        deadline = simulation.core.snapshot.next_deadline
        if deadline is None:
            raise Violation("stuck", f"there is no step, and no deadline to wait for: {simulation.core.snapshot}")
        simulation.happen(Event("wait", (max(1, math.ceil((deadline - simulation.core.now) * 1000)),)))


def check_empty(simulation: Simulation) -> None:
    """Nothing is held any more."""
    simulation.happen(Event("audit"))
    now = simulation.core.snapshot
    idle = now.num_blocks_free + now.num_blocks_evictable == now.num_blocks_total
    require(idle and not now.has_work and not now.num_slots_spanned, "held at the end", f"{now}")
    free = simulation.core.scheduler.slots.num_free_slots()
    require(free == now.num_slots, "held at the end", f"{free} of {now.num_slots} slots are free")
    require(now.next_deadline is None, "held at the end", f"a deadline: {now}")
    require(not simulation.history.num_unanswered, "not answered", f"{simulation.history.num_unanswered} queries")
