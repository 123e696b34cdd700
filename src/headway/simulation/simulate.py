"""Runs of a seed, which draws the events, and of a trace, which lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from headway.simulation.calm import calm
from headway.simulation.events import Event, EventTrace
from headway.simulation.faults import Faults
from headway.simulation.history import Violation
from headway.simulation.judged import Judged
from headway.simulation.movements import Movements
from headway.simulation.pairs import Pairs
from headway.simulation.setting import Setting, WorldSetting
from headway.simulation.siblings import Siblings
from headway.simulation.simulation import Simulation
from headway.simulation.world import World, counts_of
from headway.simulation.world_calm import calm_world

Mode = Literal["safety", "liveness", "both"]
"""safety: all owners are recounted after every message and pass. liveness: after the last step the faults stop, and
every request must end. both: both."""

Traffic = Literal["mixed", "siblings", "judged", "transfers", "pairs"]
"""mixed: requests of many kinds, equal by chance. siblings: families of equal prompts, and of prompts that share
several blocks. judged: siblings of which many ask for the log-probabilities of their prompts. transfers: requests that
pull or lend the KV of their prompt, on one engine. pairs: P and D engines, and a network between them."""

_SETTINGS = {
    "mixed": Setting.of_seed,
    "siblings": Setting.of_siblings,
    "judged": Setting.of_siblings,
    "transfers": Setting.of_transfers,
}
_FAULTS = {"mixed": Faults, "siblings": Siblings, "judged": Judged, "transfers": Movements}

Course = Simulation | World


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
    course: Course
    draw: Callable[[], Event]
    if traffic == "pairs":
        world = WorldSetting.of_seed(seed)
        engines = tuple(_chosen(engine, mode, static) for engine in world.engines)
        course = World(replace(world, engines=engines))
        draw = Pairs(seed, course).draw
    else:
        course = Simulation(_chosen(_SETTINGS[traffic](seed), mode, static))
        draw = _FAULTS[traffic](seed, course).draw
    events: list[Event] = []
    try:
        for _ in range(num_steps):
            events.append(draw())
            course.happen(events[-1])
        if mode != "safety":
            events.append(Event("calm"))
            _calm(course)
    except Violation as violation:
        return _run(course, events, violation)
    return _run(course, events, None)


def run_trace(trace: EventTrace) -> Run:
    """Run the events of a trace, up to the first violation."""
    course = Simulation(trace.setting) if isinstance(trace.setting, Setting) else World(trace.setting)
    for i, event in enumerate(trace.events):
        try:
            if event.name == "calm":
                _calm(course)
            else:
                course.happen(event)
        except Violation as violation:
            return _run(course, trace.events[: i + 1], violation)
    return _run(course, trace.events, None)


def _chosen(drawn: Setting, mode: Mode, static: bool | None) -> Setting:
    return replace(drawn, audits=mode != "liveness", static=drawn.static if static is None else static)


def _calm(course: Course) -> None:
    if isinstance(course, World):
        calm_world(course)
    else:
        calm(course)


def _run(course: Course, events: Sequence[Event], violation: Violation | None) -> Run:
    trace = EventTrace(course.setting, tuple(events))
    num_steps = sum(event.name != "calm" for event in events)
    if isinstance(course, World):
        counts, num_messages, decisions = course.all_counts(), course.num_messages, course.decisions
    else:
        counts, num_messages, decisions = counts_of(course), course.core.num_messages, course.core.decisions
    return Run(trace, num_steps, num_messages, dict(counts), decisions.hexdigest(), violation)
