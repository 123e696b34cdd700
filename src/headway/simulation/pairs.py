"""Draws what happens in a world of P and D engines: requests that go from P to D, early or late, and every fault that can
happen to the engines, to the network between them, and to the references that travel outside of it."""

from __future__ import annotations

from headway.simulation.dice import Dice
from headway.simulation.events import Event
from headway.simulation.faults import Faults
from headway.simulation.shapes import NUM_STEMS, STOP_TOKENS, Shape
from headway.simulation.simulation import Simulation
from headway.simulation.world import World

_WEIGHTS = {
    "engine": 50.0,
    "carry_out": 12.0,
    "drain": 10.0,
    "serve": 20.0,
    "listen": 20.0,
    "copy": 20.0,
    "prefill": 5.0,
    "decode": 9.0,
    "wait": 1.0,
    "tick": 1.5,
    "storm": 0.1,
    "cut": 0.25,
    "begin_anew": 0.03,
    "die": 0.06,
    "restart": 1.0,
}
_SLOW = (0.1, 0.5, 1.0, 1.0, 2.0)
_INDISPENSABLE = {"engine", "carry_out", "drain", "serve", "listen", "copy", "prefill", "decode", "wait", "tick"}


class Errands(Faults):
    """Draws what happens within one engine of a world, as `Faults` does."""

    def __init__(self, seed: int, number: int, simulation: Simulation) -> None:
        self.traffic = f"pairs {number}"
        super().__init__(seed, simulation)
        self._share_local = self._dice.pick((0.05, 0.2, 0.5))

    def turn_to(self, simulation: Simulation) -> None:
        """The engine was started again: its requests are numbered from the beginning."""
        if simulation is not self._simulation:
            self._simulation, self._next_uid = simulation, 1

    def next_uid(self) -> int:
        """For a new request."""
        self._next_uid += 1
        return self._next_uid - 1

    def any_uid(self) -> int:
        """As other events of this engine name a request."""
        return self._uid()

    def _likely(self) -> dict[str, float]:
        likely = super()._likely()
        likely["add"] *= self._share_local
        for name in ("wait", "tick", "received"):  # of the world
            likely[name] = 0.0
        for name in ("reserve", "start_prefill", "start_decode", "drop", "sent"):
            likely[name] *= 0.2
        return likely


class Pairs:
    """Draws one event after another. It looks at the state of the world, so that most events have an effect."""

    def __init__(self, seed: int, world: World) -> None:
        self._dice = dice = Dice(f"{seed} pairs")
        self._world = world
        self._errands = [Errands(seed, number, one) for number, one in enumerate(world.alive())]
        self._habits = {
            name: weight * dice.pick(_SLOW if name in _INDISPENSABLE else (0.0, 0.3, 1.0, 1.0, 3.0))
            for name, weight in _WEIGHTS.items()
        }
        config = world.setting.engines[0].config
        self._longest = config.max_model_len
        self._lengths = [1 + dice.below(self._longest // 2) for _ in range(3)]
        self._num_tails = 0
        self._asked: dict[int, tuple[Shape, int]] = {}  # number of a prompt -> its shape on P, and its tail
        self._batch = dice.pick((1, 2, 2, 8))  # messages at once, at most
        self._share_early = dice.pick((0.0, 0.2, 0.6, 1.0))
        self._share_bad = dice.pick((0.0, 0.05, 0.2))
        self._share_again = dice.pick((0.0, 0.05, 0.2))
        self._share_stuck = dice.pick((0.0, 0.0, 0.05))
        self._share_silent = dice.pick((0.0, 0.2, 0.6))
        self._priorities = dice.pick(((0,), (0, 0, 0, 1), (0, 1, 2, -1)))
        self._share_salted = dice.pick((0.0, 0.1))
        self._share_with_images = dice.pick((0.0, 0.0, 0.3))
        self._waits = dice.pick(((1, 5), (1, 5, 20), (1, 5, 20, 100), (5, 100, 2000)))
        self._ready: list[int] = []  # numbers of prompts that no D has heard of

    def draw(self) -> Event:
        """The next event."""
        for number, errands in enumerate(self._errands):
            if (simulation := self._world.members[number].simulation) is not None:
                errands.turn_to(simulation)
        likely = dict(self._habits)
        if not self._ready:
            likely["decode"] *= 0.1
        crowd = sum(len(one.history.live) for one in self._world.alive())
        if crowd > 6 * len(self._errands):
            likely["prefill"] *= 0.1
        if all(member.simulation is not None for member in self._world.members):
            likely["restart"] *= 0.02
        name = self._dice.weighted(likely)
        event: Event = getattr(self, f"_{name}")()
        return event

    # -- engines -------------------------------------------------------------------------------------------------

    def _any(self) -> int:
        return self._dice.below(len(self._errands))

    def _p(self) -> int:
        return self._dice.below(self._world.setting.num_prefill)

    def _d(self) -> int:
        first = self._world.setting.num_prefill
        return first + self._dice.below(len(self._errands) - first)

    def _engine(self) -> Event:
        number = self._any()
        if self._world.members[number].simulation is None:
            return self._restart()
        return self._errands[number].draw()._replace(at=number)

    def _carry_out(self) -> Event:
        return Event("carry_out", (self._dice.pick((1, 1, 4, 99)),), self._any())

    def _drain(self) -> Event:
        return Event("drain", (self._dice.pick((1, 1, 4, 99)),), self._any())

    def _tick(self) -> Event:
        return Event("tick", (), self._any())

    def _wait(self) -> Event:
        return Event("wait", (self._dice.pick(self._waits),))

    def _storm(self) -> Event:
        """Nine of ten clients leave."""
        number = self._any()
        simulation = self._world.members[number].simulation
        live = [] if simulation is None else list(simulation.history.live)
        return Event("abort", tuple(uid for uid in live if self._dice.chance(0.9)) or (1,), number)

    def _begin_anew(self) -> Event:
        return Event("begin_anew", (), self._p())

    def _die(self) -> Event:
        return Event("die", (int(self._dice.chance(self._share_silent)), self._dice.below(4)), self._any())

    def _restart(self) -> Event:
        dead = [member.number for member in self._world.members if member.simulation is None]
        return Event("restart", (), self._dice.pick(dead) if dead else self._any())

    # -- the network ---------------------------------------------------------------------------------------------

    def _serve(self) -> Event:
        return Event("serve", (self._p(), self._dice.below(self._batch + 1)), self._d())

    def _listen(self) -> Event:
        dice = self._dice
        back, stuck = dice.pick((0, 0, 0, 1)), int(dice.chance(self._share_stuck))
        return Event("listen", (self._d(), back, dice.below(self._batch + 1), stuck), self._p())

    def _copy(self) -> Event:
        dice, size = self._dice, self._world.setting.engines[0].config.block_size
        count = dice.pick((0, 1, size, size, 2 * size, 4 * size))
        return Event("copy", (self._p(), dice.below(4), count), self._d())

    def _cut(self) -> Event:
        how = 2 if self._dice.chance(self._share_silent) else self._dice.below(2)
        return Event("cut", (self._p(), how, self._dice.below(4)), self._d())

    # -- requests ------------------------------------------------------------------------------------------------

    def _prefill(self) -> Event:
        p, dice, longest = self._p(), self._dice, self._longest
        shared = dice.pick(self._lengths) if dice.chance(0.7) else dice.below(longest // 2)
        own = dice.below(longest // 3) if dice.chance(0.7) else 0
        own += shared + own == 0
        shape = Shape(
            self._errands[p].next_uid(),
            dice.below(NUM_STEMS),
            shared,
            own,
            1,
            dice.pick((0, 0, 1)),
            dice.pick(self._priorities),
            int(dice.chance(self._share_salted)),
            dice.below(len(STOP_TOKENS) + 1),
            1 + dice.below(12) if dice.chance(self._share_with_images) else 0,
        )
        self._num_tails += 1
        number = len(self._world.prompts)
        if self._world.members[p].simulation is not None:  # else no prompt gets this number now
            self._asked[number] = shape, self._num_tails
            self._ready.append(number)
        return Event("prefill", (*shape, self._num_tails), p)

    def _decode(self) -> Event:
        """D hears of a prompt: early, as soon as P has taken it; or when a lease has begun; or again, or of another."""
        dice, prompts = self._dice, self._world.prompts
        early = dice.chance(self._share_early)
        ready = [number for number in self._ready if early or prompts[number].latest != prompts[number].first]
        again = bool(self._asked) and (not ready or dice.chance(self._share_again))
        if again and (ready or dice.chance(0.1)):
            number = dice.pick(list(self._asked))
        elif ready:
            number = ready[-1] if dice.chance(0.7) else dice.pick(ready)
            self._ready.remove(number)
        else:
            return self._serve()
        return self._ask_d(number)

    def _ask_d(self, number: int) -> Event:
        d, dice = self._d(), self._dice
        shape, tail = self._asked[number]
        if dice.chance(self._share_bad / 4) and len(self._asked) > 1:
            shape, tail = self._asked[dice.pick(list(self._asked))]  # a reference to another prompt
        how = dice.pick((1, 2, 3, 4, 5)) if dice.chance(self._share_bad) else 0
        room = max(1, self._longest - shape.shared - shape.own)
        own = shape._replace(
            uid=self._errands[d].next_uid(),
            max_tokens=1 + dice.below(room if dice.chance(0.4) else min(room, 6)),
            min_tokens=dice.pick((0, 0, 0, 2)),
            priority=dice.pick(self._priorities),
        )
        return Event("decode", (*own, tail, number, how), d)
