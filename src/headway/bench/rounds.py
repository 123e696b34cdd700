"""The samples of the rounds of a measurement, and the comparison of two systems that were measured in turn."""

from __future__ import annotations

from collections.abc import Callable

from headway.bench.report import Row

Samples = dict[str, list[float]]
"""The samples of one round, by name."""

Rounds = list[Samples]


def pooled(rounds: Rounds) -> Samples:
    """The samples of all rounds together."""
    return {name: [value for samples in rounds for value in samples[name]] for name in rounds[0]}


def compared(theirs: Rounds, ours: Rounds, cost: Callable[[Samples], float], name: str = "times_headway") -> Row:
    """The cost of another system divided by ours: over all rounds, and the least and most of any round."""
    each = [cost(their) / cost(our) for their, our in zip(theirs, ours, strict=True)]
    return {
        name: round(cost(pooled(theirs)) / cost(pooled(ours)), 2),
        f"{name}_low": round(min(each), 2),
        f"{name}_high": round(max(each), 2),
    }
