"""Runs of a seed, which draws the events, and of a trace, which lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from headway.simulation.calm import calm
from headway.simulation.events import Event, EventTrace
from headway.simulation.faults import Faults
from headway.simulation.history import Violation
from headway.simulation.movements import Movements
from headway.simulation.setting import Setting
from headway.simulation.siblings import Siblings
from headway.simulation.simulation import Simulation

Mode = Literal["safety", "liveness", "both"]
"""safety: all owners are recounted after every message and pass. liveness: after the last step the faults stop, and
every request must end. both: both."""

Traffic = Literal["mixed", "siblings", "transfers"]
"""mixed: requests of many kinds, equal by chance. siblings: families of equal prompts, and of prompts that share
several blocks. transfers: requests that pull or lend the KV of their prompt."""

_SETTINGS = {"mixed": Setting.of_seed, "siblings": Setting.of_siblings, "transfers": Setting.of_transfers}
_FAULTS = {"mixed": Faults, "siblings": Siblings, "transfers": Movements}


@dataclass(frozen=True, slots=True)
class Run:
    """The outcome of a run. trace: its events, up to the violation if there is one.

    num_steps: number of events, without the calm at the end. counts: how often each kind of event happened.
    decisions: a digest of every batch and effect, see `Decisions`.
    """

    trace: EventTrace
    num_steps: int
    num_messages: int
    counts: dict[str, int]
    decisions: str
    violation: Violation | None


def run_seed(
    seed: int, num_steps: int, mode: Mode = "both", static: bool | None = None, traffic: Traffic = "mixed"
) -> Run:
    """Run `num_steps` events drawn from a seed. The same arguments give the same run, bit for bit.

    static: whether allocation is static; None: drawn from the seed.
    """
    drawn = _SETTINGS[traffic](seed)
    setting = replace(drawn, audits=mode != "liveness", static=drawn.static if static is None else static)
    simulation = Simulation(setting)
    faults = _FAULTS[traffic](seed, simulation)
    events: list[Event] = []
    try:
        for _ in range(num_steps):
            events.append(faults.draw())
            simulation.happen(events[-1])
        if mode != "safety":
            events.append(Event("calm"))
            calm(simulation)
    except Violation as violation:
        return _run(simulation, events, violation)
    return _run(simulation, events, None)


def run_trace(trace: EventTrace) -> Run:
    """Run the events of a trace, up to the first violation."""
    simulation = Simulation(trace.setting)
    for i, event in enumerate(trace.events):
        try:
            if event.name == "calm":
                calm(simulation)
            else:
                simulation.happen(event)
        except Violation as violation:
            return _run(simulation, trace.events[: i + 1], violation)
    return _run(simulation, trace.events, None)


def _run(simulation: Simulation, events: Sequence[Event], violation: Violation | None) -> Run:
    history, now = simulation.history, simulation.core.snapshot
    counts = (
        simulation.counts
        + simulation.connector.counts
        + Counter(
            {
                "requests accepted": len(history.ended) + len(history.live),
                "requests completed": history.num_completed,
                "tokens generated": history.num_tokens,
                "tokens found in the prefix cache": now.num_prefix_hit_tokens,
                "preemptions": now.num_preemptions,
                "reservations": len(simulation.partner.reserved_uids),
            }
        )
    )
    trace = EventTrace(simulation.setting, tuple(events))
    num_steps = sum(event.name != "calm" for event in events)
    return Run(
        trace, num_steps, simulation.core.num_messages, dict(counts), simulation.core.decisions.hexdigest(), violation
    )
