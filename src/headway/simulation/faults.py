"""Draws the next event from a seed: traffic, and every fault that can happen to it.

Each seed first draws its habits: which kinds of events it uses, and how often. Runs without some kinds of events reach
states that runs with a little of every kind never reach.
"""

from __future__ import annotations

from collections.abc import Callable

from headway.config import Role, SchedulerConfig
from headway.simulation.dice import Dice
from headway.simulation.events import Event
from headway.simulation.shapes import NUM_STEMS, STOP_TOKENS, Shape
from headway.simulation.simulation import Simulation

UNKNOWN_UID = 1 << 40

# The weight of each event while it makes sense, for an average seed.
_WEIGHTS = {
    "launch": 28.0,
    "answer": 28.0,
    "repeat": 0.5,
    "stray": 0.3,
    "lose": 0.06,
    "add": 12.0,
    "abort": 0.8,
    "finish": 0.5,
    "look": 0.5,
    "publish": 1.0,
    "prepared": 6.0,
    "reserve": 7.0,
    "start_prefill": 6.0,
    "start_decode": 6.0,
    "drop": 0.7,
    "sent": 5.0,
    "pause": 0.16,
    "resume": 4.0,
    "preempt_all": 0.15,
    "clear": 0.04,
    "reset_cache": 0.3,
    "progress": 1.0,
    "audit": 0.2,
    "await_steps": 0.6,
    "wait": 2.0,
    "tick": 0.3,
}
# The same, for the seeds that know them.
_LIFT_HOLD = 3.0
_HOLD = 0.3
_INDISPENSABLE = {"launch", "answer", "resume", "prepared", "start_prefill", "start_decode", "sent", "wait"}


class Faults:
    """Draws one event after another. It looks at the state of the run, so that most events have an effect."""

    traffic = "events"  # part of the seed

    def __init__(self, seed: int, simulation: Simulation) -> None:
        self._dice = Dice(f"{seed} {self.traffic}")
        self._simulation = simulation
        self._config: SchedulerConfig = simulation.config
        self._next_uid = 1
        self._habits = {name: weight * self._habit(name) for name, weight in _WEIGHTS.items()}
        pick = self._dice.pick
        self._habits |= self._own_habits(Dice(f"{seed} {self.traffic} quarantine and hold"))
        self._crowd = self._config.max_num_seqs * pick((1, 2, 4)) + 1
        self._lengths = [1 + self._dice.below(self._config.max_model_len // 2) for _ in range(3)]  # common ones
        self._slow = 0  # events during which the oldest step in flight gives no result
        self._share_slow = pick((0.0, 0.01, 0.04))
        self._share_failing = pick((0.0, 0.01, 0.03, 0.1))
        self._share_with_images = pick((0.0, 0.2, 0.5, 0.9))
        self._share_prepared = pick((0.0, 0.05, 0.2))
        self._share_salted = pick((0.0, 0.1, 0.5))
        self._priorities = pick(((0,), (0, 0, 0, 1), (0, 1, 2, -1)))
        self._args: dict[str, Callable[[], tuple[int, ...]]] = {
            "answer": self._outcome,
            "repeat": lambda: (self._dice.below(4),),
            "stray": lambda: (self._dice.below(9),),
            "add": self._shape,
            "abort": self._uids,
            "finish": self._uids,
            "look": self._uids,
            "publish": self._uids,
            "prepared": lambda: (self._uid(self._preparing()), self._dice.pick((0, 0, 0, 1, 1, 2, 3))),
            "reserve": self._reserve,
            "start_prefill": lambda: (self._uid(list(self._simulation.partner.reservations)),),
            "start_decode": lambda: (self._uid(list(self._simulation.partner.reservations)),),
            "drop": lambda: (self._uid(list(self._simulation.partner.reservations)),),
            "sent": lambda: (self._uid(list(self._simulation.partner.leases)), int(self._dice.chance(0.2))),
            "pause": lambda: (self._dice.below(2), self._dice.below(2)),
            "progress": lambda: (self._uid(),),
            "wait": lambda: (self._dice.pick((1, 5, 20, 100, 400)),),
            "acknowledge": self._acknowledgement,
            "received": lambda: (self._uid(list(self._simulation.connector.quarantined)), 2),
        }

    def draw(self) -> Event:
        """The next event."""
        name = self._dice.weighted(self._likely())
        if name == "answer" and self._dice.chance(self._share_slow):
            self._slow = 10 + self._dice.below(50)
            name = self._dice.weighted(self._likely())
        args = self._args.get(name)
        return Event(name, args() if args is not None else ())

    def _habit(self, name: str) -> float:
        if name in _INDISPENSABLE:
            return self._dice.pick((0.3, 1.0, 1.0, 2.0))
        return self._dice.pick((0.0, 0.3, 1.0, 1.0, 3.0))

    def _own_habits(self, dice: Dice) -> dict[str, float]:
        """Events that some seeds know. Acknowledgements may be so rare that only the loss of the device frees slots."""
        own = {"hold": _HOLD, "lift_hold": _LIFT_HOLD} if dice.chance(0.25) else {}
        if self._config.quarantine_slots:
            own["acknowledge"] = dice.pick((0.1, 1.0, 4.0, 16.0))
            own["lose"] = self._habits["lose"] + dice.pick((0.0, 0.1, 0.3))
        return own

    def _likely(self) -> dict[str, float]:
        """The weight of each event now. Events that make no sense now are rare, but possible: callers make mistakes."""
        simulation, likely = self._simulation, dict(self._habits)
        if simulation.config.role is not Role.MIXED:
            likely["add"] *= 0.3
        for name in self._senseless() & likely.keys():
            likely[name] *= 0.02
        if simulation.connector.quarantined:
            likely["received"] = 5.0
        if len(simulation.in_flight) == simulation.setting.depth or simulation.core.paused:
            likely["launch"] *= 0.05
        if not simulation.in_flight or self._slow:
            likely["answer"] = 0.0
            self._slow = max(0, self._slow - 1)
        if len(simulation.history.live) > self._crowd:
            likely["add"] *= 0.05
        elif len(simulation.history.live) < self._crowd // 2:
            likely["add"] *= 3
        if not simulation.history.live:
            likely["launch"] *= 0.05
        return likely

    def _senseless(self) -> set[str]:
        """The events that make no sense now."""
        simulation, core = self._simulation, self._simulation.core
        if simulation.config.role is Role.MIXED:
            names = {"reserve", "start_prefill", "start_decode", "drop", "sent"}
        else:
            names = {"start_decode"} if simulation.config.role is Role.PREFILL else {"start_prefill", "sent"}
        if not simulation.partner.reservations:
            names |= {"start_prefill", "start_decode", "drop"}
        if not simulation.partner.leases:
            names.add("sent")
        if not any(life.preparing for life in simulation.history.live.values()):
            names.add("prepared")
        if not core.quarantine.slots:
            names.add("acknowledge")
        names.add("pause" if core.paused else "resume")
        names.add("hold" if core.held else "lift_hold")
        return names

    def _outcome(self) -> tuple[int, ...]:
        # Steps that encode images are few but important.
        share = self._share_failing * (5 if self._simulation.in_flight[0].encodes else 1)
        return (self._dice.pick((1, 1, 2, 3)) if self._dice.chance(share) else 0,)

    def _acknowledgement(self) -> tuple[int, ...]:
        waiting = list(self._simulation.core.quarantine.slots)
        any_slot = not waiting or self._dice.chance(0.1)
        slot = self._dice.below(self._config.max_num_seqs) if any_slot else self._dice.pick(waiting)
        return slot, self._dice.pick((0, 0, 0, 0, 1, 2))

    def _preparing(self) -> list[int]:
        return [uid for uid, life in self._simulation.history.live.items() if life.preparing]

    def _uid(self, wanted: list[int] | None = None) -> int:
        """Mostly one of the wanted uids; else any live uid, the uid of an ended request, or an unknown uid."""
        dice, history = self._dice, self._simulation.history
        if wanted and dice.chance(0.9):
            return dice.pick(wanted)
        if history.live and dice.chance(0.8):
            return dice.pick(list(history.live))
        if self._next_uid > 1 and dice.chance(0.8):
            return 1 + dice.below(self._next_uid - 1)
        return UNKNOWN_UID

    def _uids(self) -> tuple[int, ...]:
        return tuple(self._uid() for _ in range(self._dice.pick((1, 1, 1, 2, 4))))

    def _shape(self) -> Shape:
        dice, longest = self._dice, self._config.max_model_len
        uid = self._next_uid
        if dice.chance(0.01) and self._simulation.history.live:
            uid = dice.pick(list(self._simulation.history.live))  # in use
        else:
            self._next_uid += 1
        shared = dice.pick(self._lengths) if dice.chance(0.6) else dice.below(longest // 2)
        own = dice.below(longest // 4) if dice.chance(0.6) else 0  # 0: equal to the prompts of other requests
        own += shared + own == 0
        room = max(1, longest - shared - own)
        max_tokens = 1 + dice.below(room if dice.chance(0.6) else min(room, 6))
        if dice.chance(0.02):
            max_tokens = room + 1 + dice.below(3)  # it can never fit
        if self._config.role is Role.PREFILL and dice.chance(0.9):
            max_tokens = 1
        return Shape(
            uid,
            dice.below(NUM_STEMS),
            shared,
            own,
            max_tokens,
            dice.pick((0, 0, 0, 2, 5)),
            dice.pick(self._priorities),
            int(dice.chance(self._share_salted)),
            dice.below(len(STOP_TOKENS) + 1),
            1 + dice.below(12) if dice.chance(self._share_with_images) else 0,
            int(dice.chance(self._share_prepared)),
        )

    def _reserve(self) -> tuple[int, ...]:
        own = 1 if self._config.role is Role.DECODE else 0
        of = own if self._dice.chance(0.97) else 1 - own
        return (*self._shape(), of, self._dice.pick((50, 200, 5000)))
