"""The samples of a measurement's rounds, and how two systems compare that were measured in turn."""

from __future__ import annotations

from collections.abc import Callable

from headway.bench.report import Row

Samples = dict[str, list[float]]
"""Of one round, by name."""

Rounds = list[Samples]


def pooled(rounds: Rounds) -> Samples:
    """The samples of all rounds together."""
    return {name: [value for samples in rounds for value in samples[name]] for name in rounds[0]}


def compared(theirs: Rounds, ours: Rounds, cost: Callable[[Samples], float], name: str = "times_headway") -> Row:
    """How many times our cost theirs is: over all rounds, and in the rounds where it is least and most."""
    each = [cost(their) / cost(our) for their, our in zip(theirs, ours, strict=True)]
    return {
        name: round(cost(pooled(theirs)) / cost(pooled(ours)), 2),
        f"{name}_low": round(min(each), 2),
        f"{name}_high": round(max(each), 2),
    }
