"""Draws traffic of requests that pull or lend the KV of their prompt, and connectors that are late, slow, or dead."""

from __future__ import annotations

from headway.config import Role
from headway.simulation.events import Event
from headway.simulation.faults import Faults
from headway.simulation.simulation import Simulation

_WEIGHTS = {"carry": 6.0, "received": 8.0, "consume": 6.0, "renew": 2.0, "release": 0.7}


class Movements(Faults):
    """Draws one event after another, as `Faults` does. But many of the requests that are added pull or lend."""

    traffic = "transfers"

    def __init__(self, seed: int, simulation: Simulation) -> None:
        super().__init__(seed, simulation)
        dice = self._dice
        self._share_moving = dice.pick((0.3, 0.6, 0.9))
        self._moves = {name: weight * dice.pick((0.3, 1.0, 1.0, 3.0)) for name, weight in _WEIGHTS.items()}
        self._share_failing_pulls = dice.pick((0.0, 0.1, 0.5))

    def draw(self) -> Event:
        """The next event."""
        event = super().draw()
        if event.name != "add" or not self._dice.chance(self._share_moving):
            return event
        role = self._config.role
        lends = role is Role.PREFILL or (role is Role.MIXED and self._dice.chance(0.5))
        return Event("lend" if lends else "pull", event.args)

    def _likely(self) -> dict[str, float]:
        likely, connector = super()._likely() | self._moves, self._simulation.connector
        if self._config.role is not Role.MIXED:
            likely["add"] *= 4
        waiting = {
            "carry": connector.pulls,
            "received": connector.pulls or connector.quarantined,
            "consume": connector.lent,
            "renew": connector.lent,
            "release": connector.lent,
        }
        for name, subjects in waiting.items():
            if not subjects:
                likely[name] *= 0.02
        dice, lent = self._dice, list(connector.lent)
        moving = [*connector.pulls, *connector.quarantined]
        self._args |= {
            "carry": lambda: (self._uid(list(connector.pulls)), 1 + dice.below(4)),
            "received": lambda: (self._uid(moving), 2 if dice.chance(self._share_failing_pulls) else dice.below(2)),
            "consume": lambda: (self._uid(lent), int(dice.chance(0.05))),
            "renew": lambda: (self._uid(lent),),
            "release": lambda: (self._uid(lent),),
        }
        return likely
