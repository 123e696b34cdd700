"""Whether two engines gave the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TOLERANCE = 1e-4
"""Of logprobs: rows of different batches are added up in different orders."""


def same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are equal, numbers with a fraction within the tolerance."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= TOLERANCE
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


def differences(stock: Sequence[Any], ours: Sequence[Any]) -> list[str]:
    """Each answer in which ours differs from vLLM's own scheduler's."""
    if len(stock) != len(ours):
        return [f"{len(ours)} answers; the stock scheduler gave {len(stock)}"]
    return [
        f"answer {i}: {theirs}\nours:      {mine}"
        for i, (theirs, mine) in enumerate(zip(stock, ours))
        if not same(theirs, mine)
    ]
