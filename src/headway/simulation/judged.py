"""Draws traffic of siblings of which many ask for the log-probabilities of their prompts."""

from __future__ import annotations

from headway.simulation.events import Event
from headway.simulation.shapes import Shape
from headway.simulation.siblings import Siblings
from headway.simulation.simulation import Simulation


class Judged(Siblings):
    """Draws one event after another, as `Siblings` does. But many of the requests that are added ask."""

    traffic = "judged"

    def __init__(self, seed: int, simulation: Simulation) -> None:
        super().__init__(seed, simulation)
        self._share_judged = self._dice.pick((0.2, 0.5, 1.0))

    def draw(self) -> Event:
        """The next event."""
        event = super().draw()
        if event.name != "add" or not self._dice.chance(self._share_judged):
            return event
        return Event("add", tuple(Shape(*event.args)._replace(judged=1)))
