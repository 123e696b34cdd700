"""Draws traffic of siblings from a seed: many equal prompts, and prompts that share several blocks and go on by
themselves. They come together, or while the first of them is computed, and the same faults happen to them."""

from __future__ import annotations

from collections import deque

from headway.simulation.events import Event
from headway.simulation.faults import Faults
from headway.simulation.shapes import Shape
from headway.simulation.simulation import Simulation


class Siblings(Faults):
    """Draws one event after another, as `Faults` does. But each request that is added is the first of a family."""

    traffic = "siblings"

    def __init__(self, seed: int, simulation: Simulation) -> None:
        super().__init__(seed, simulation)
        pick, size = self._dice.pick, self._config.block_size
        longest = self._config.max_model_len * 3 // 4
        self._lengths = [min(longest, size * (2 + self._dice.below(8)) + self._dice.below(size)) for _ in range(3)]
        self._share_failing = pick((0.0, 0.02, 0.1, 0.3))
        self._share_salted = pick((0.0, 0.0, 0.1))
        self._share_prepared = pick((0.0, 0.0, 0.1))
        self._share_with_images = pick((0.0, 0.0, 0.0, 0.3, 0.9))
        self._share_between = pick((0.0, 0.3, 0.6))  # siblings that come after a further step
        self._planned: deque[Event] = deque()

    def draw(self) -> Event:
        """The next event."""
        if self._planned:
            return self._planned.popleft()
        event = super().draw()
        if event.name == "add":
            self._plan_family(Shape(*event.args))
        return event

    def _plan_family(self, first: Shape) -> None:
        """More requests with the same beginning, and what may befall the first of them."""
        dice = self._dice
        equal = dice.chance(0.5)
        for _ in range(dice.pick((1, 2, 3, 7))):
            if dice.chance(self._share_between):
                self._planned.append(Event("launch"))
            own = 0 if equal else dice.below(2 * self._config.block_size)
            room = self._config.max_model_len - first.shared - own
            shape = first._replace(
                uid=self._next_uid,
                own=own,
                max_tokens=min(first.max_tokens, max(1, room)),
                priority=dice.pick(self._priorities),
            )
            self._next_uid += 1
            self._planned.append(Event("add", tuple(shape)))
        if dice.chance(0.6):
            self._planned.append(Event("launch"))
        fate = dice.pick((None, None, None, "abort", "abort", "finish", "answer", "preempt_all", "reset_cache"))
        if fate is not None:
            self._planned.append(
                Event(fate, {"answer": (1,), "abort": (first.uid,), "finish": (first.uid,)}.get(fate, ()))
            )

    def _shape(self) -> Shape:
        """The first of a family: a request without a beginning of its own."""
        shape, dice = super()._shape(), self._dice
        shared = dice.pick(self._lengths)
        room = max(1, self._config.max_model_len - shared)
        max_tokens = 1 if shape.max_tokens == 1 else 1 + dice.below(min(room, 12))
        return shape._replace(shared=shared, own=0, max_tokens=max_tokens)
