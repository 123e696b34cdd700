"""Random choices that are the same in every version of Python."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Draws from a seed. Uses only `random()`: Python promises the same numbers for this method alone."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def below(self, count: int) -> int:
        """An integer of [0, count)."""
        return int(self._random() * count)

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self._random() < share

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices, all equally likely."""
        return choices[int(self._random() * len(choices))]

    def weighted(self, weights: dict[str, float]) -> str:
        """One of the names, with a probability in proportion to its weight."""
        left = self._random() * sum(weights.values())
        for name, weight in weights.items():
            left -= weight
            if left < 0:
                return name
        return next(reversed(weights))  # rounding can leave a rest
