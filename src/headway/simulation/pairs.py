"""Draws what happens in a world of P and D engines: requests that go from P to D, early or late, and every fault that
can happen to the engines, to the network between them, and to the references that travel outside of it."""

from __future__ import annotations

from collections import deque
from typing import Any

from headway.simulation.dice import Dice
from headway.simulation.events import Event
from headway.simulation.faults import Faults
from headway.simulation.shapes import NUM_STEMS, STOP_TOKENS, Shape
from headway.simulation.simulation import Simulation
from headway.simulation.world import World

_WEIGHTS = {
    "engine": 60.0,
    "carry_out": 20.0,
    "drain": 15.0,
    "serve": 40.0,
    "listen": 30.0,
    "copy": 40.0,
    "prefill": 5.0,
    "decode": 10.0,
    "wait": 0.7,
    "tick": 0.7,
    "storm": 0.1,
    "cut": 0.15,
    "die": 0.05,
    "restart": 2.0,
}
_DISTURBING = ("wait", "storm", "cut", "die")
_SLOW = (0.1, 0.5, 1.0, 1.0, 2.0)
_INDISPENSABLE = {"engine", "carry_out", "drain", "serve", "listen", "copy", "prefill", "decode", "wait", "tick"}


# Less often than in a run of one engine: the others have to get on too.
_SELDOM = dict.fromkeys(("abort", "finish", "publish", "repeat", "await_steps", "progress", "look", "reset_cache"), 0.3)
_SELDOM |= dict.fromkeys(("reserve", "start_prefill", "start_decode", "drop", "sent"), 0.2)


class Errands(Faults):
    """Draws what happens within one engine of a world, as `Faults` does."""

    def __init__(self, seed: int, number: int, simulation: Simulation) -> None:
        self.traffic = f"pairs {number}"
        super().__init__(seed, simulation)
        self._share_local = self._dice.pick((0.05, 0.1, 0.3))
        self._rage = self._dice.pick((0.05, 0.2, 1.0, 3.0))

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
        for name, share in _SELDOM.items():
            likely[name] *= share
        now = self._simulation.core.snapshot
        if not now.num_running and not now.num_waiting:
            likely["launch"] *= 0.1
        if self._simulation.connector.holds_any:  # what ends leases and pulls
            for name in ("pause", "clear", "lose", "preempt_all"):
                likely[name] *= self._rage
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
        fury = dice.pick((0.1, 0.3, 1.0, 1.0))  # some seeds let most transfers succeed
        for name in _DISTURBING:
            self._habits[name] *= fury
        self._longest = world.setting.engines[0].config.max_model_len
        self._lengths = [1 + dice.below(self._longest // 2) for _ in range(3)]
        self._num_tails = 0
        self._asked: dict[int, tuple[Shape, int]] = {}  # number of a prompt -> its shape on P, and its tail
        self._former: dict[tuple[int, int], Shape] = {}  # by P and uid: of the last incarnation that had it
        self._batch = dice.pick((1, 2, 2, 8))  # messages at once, at most
        self._share_early = dice.pick((0.0, 0.3, 1.0))
        self._share_bad = dice.pick((0.0, 0.05, 0.2))
        self._share_again = dice.pick((0.0, 0.05, 0.2))
        self._share_stuck = dice.pick((0.0, 0.0, 0.05))
        self._share_silent = dice.pick((0.0, 0.2, 0.6))
        self._priorities = dice.pick(((0,), (0, 0, 0, 1), (0, 1, 2, -1)))
        self._share_salted = dice.pick((0.0, 0.1))
        self._share_with_images = dice.pick((0.0, 0.0, 0.3))
        self._share_slow = dice.pick((0.0, 0.01, 0.05))
        self._share_ambushed = fury * dice.pick((0.0, 0.05, 0.3))
        self._num_drawn = 0
        self._stands: dict[tuple[str, Any], int] = {}  # what stands still, and until which event
        self._planned: deque[Event] = deque()
        self._waits = dice.pick(((1, 5), (1, 5, 20), (1, 5, 20, 100), (5, 100, 2000)))
        self._ready: list[int] = []  # numbers of prompts that no D has heard of
        self._busy: dict[str, Any] = {}  # by event, the engines, or the pairs of D and P, that have something to do

    def draw(self) -> Event:
        """The next event."""
        world = self._world
        for number, errands in enumerate(self._errands):
            if (simulation := world.members[number].simulation) is not None:
                errands.turn_to(simulation)
        alive = [member.number for member in world.members if member.simulation is not None]
        links = [(pair, link) for pair, link in world.links.items() if pair[0] in alive]
        self._busy = {
            "carry_out": [number for number in alive if world.endpoint(number).num_news],
            "drain": [number for number in alive if world.endpoint(number).num_messages],
            "serve": [pair for pair, link in links if link.can_serve()],
            "copy": [pair for pair, link in links if link.can_copy()],
            "listen": [pair for pair, link in world.links.items() if pair[1] in alive and link.can_listen()],
        }
        self._hiccup()
        if self._planned:
            return self._planned.popleft()
        if self._busy["copy"] and self._dice.chance(self._share_ambushed):
            self._ambush(*self._dice.pick(self._busy["copy"]))
        likely = dict(self._habits)
        for name, busy in self._busy.items():
            if not busy:
                likely[name] *= 0.05
        if not self._ready:
            likely["decode"] *= 0.1
        crowd = sum(len(one.history.live) for one in world.alive())
        if crowd > 4 * len(self._errands):
            likely["prefill"] *= 0.1
        if len(alive) == len(self._errands):
            likely["restart"] *= 0.02
        event: Event = getattr(self, f"_{self._dice.weighted(likely)}")()
        return event

    def _hiccup(self) -> None:
        """Now and then a thread stands still for a while, or a read, or an end of the network."""
        self._num_drawn += 1
        if self._dice.chance(self._share_slow):
            name = self._dice.pick(list(self._busy))
            if busy := self._busy[name]:
                self._stands[name, self._dice.pick(busy)] = self._num_drawn + 10 + self._dice.below(80)
        for (name, which), until in list(self._stands.items()):
            if until < self._num_drawn:
                del self._stands[name, which]
            elif which in self._busy[name]:
                self._busy[name].remove(which)

    def _ambush(self, d: int, p: int) -> None:
        """While D reads, something ends the lease, or takes the blocks from the prompt, and P uses its blocks anew."""
        dice, planned = self._dice, self._planned
        fate = dice.pick(("wait", "wait", "wait", *("preempt_all",) * 4, "clear", "pause", "lose", "abort"))
        if dice.chance(0.05):
            fate = "die"
        if fate == "wait":
            ms = 1 + int(1000 * self._world.setting.engines[p].config.lend_timeout)
            planned += [Event("wait", (ms,)), Event("tick", (), p)]
        elif fate == "abort":
            planned += [Event("abort", (self._errands[p].any_uid(),), p)]
        else:
            planned += [Event(fate, {"pause": (1, 1), "die": (0, 0)}.get(fate, ()), p)]
        if fate in ("pause", "die"):
            planned.append(Event("resume" if fate == "pause" else "restart", (), p))
        if fate != "die":
            planned += [self._prefill_at(p) for _ in range(dice.pick((0, 1, 3)))]
        planned += [Event("launch", (), p), Event("answer", (0,), p)] * dice.pick((1, 2, 4))
        if dice.chance(0.7):
            planned += [Event("copy", (p, 0, 1 << 10), d)] * 4

    def _busy_engine(self, name: str) -> int:
        busy: list[int] = self._busy[name]
        return self._dice.pick(busy) if busy and self._dice.chance(0.95) else self._any()

    def _busy_pair(self, name: str) -> tuple[int, int]:
        busy: list[tuple[int, int]] = self._busy[name]
        return self._dice.pick(busy) if busy and self._dice.chance(0.95) else (self._d(), self._p())

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
        return Event("carry_out", (self._dice.pick((1, 1, 4, 99)),), self._busy_engine("carry_out"))

    def _drain(self) -> Event:
        return Event("drain", (self._dice.pick((1, 1, 4, 99)),), self._busy_engine("drain"))

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

    def _die(self) -> Event:
        return Event("die", (int(self._dice.chance(self._share_silent)), self._dice.below(4)), self._any())

    def _restart(self) -> Event:
        dead = [member.number for member in self._world.members if member.simulation is None]
        return Event("restart", (), self._dice.pick(dead) if dead else self._any())

    # -- the network ---------------------------------------------------------------------------------------------

    def _serve(self) -> Event:
        d, p = self._busy_pair("serve")
        return Event("serve", (p, self._dice.below(self._batch + 1)), d)

    def _listen(self) -> Event:
        dice, (d, p) = self._dice, self._busy_pair("listen")
        back, stuck = dice.pick((0, 0, 0, 1)), int(dice.chance(self._share_stuck))
        return Event("listen", (d, back, dice.below(self._batch + 1), stuck), p)

    def _copy(self) -> Event:
        dice, size = self._dice, self._world.setting.engines[0].config.block_size
        count = dice.pick((0, 1, size, size, 2 * size, 4 * size))
        d, p = self._busy_pair("copy")
        return Event("copy", (p, dice.below(4), count), d)

    def _cut(self) -> Event:
        how = 2 if self._dice.chance(self._share_silent) else self._dice.below(2)
        return Event("cut", (self._p(), how, self._dice.below(4)), self._d())

    # -- requests ------------------------------------------------------------------------------------------------

    def _prefill(self) -> Event:
        return self._prefill_at(self._p())

    def _prefill_at(self, p: int) -> Event:
        dice, longest = self._dice, self._longest
        shared = dice.pick(self._lengths) if dice.chance(0.6) else dice.below(longest // 4)
        own = dice.below(longest // 2 - 1) if dice.chance(0.85) else 0
        own += shared + own == 0
        uid = self._errands[p].next_uid()
        shape = Shape(
            uid,
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
        if (former := self._former.get((p, uid))) is not None and dice.chance(0.5):  # as long, and another
            shape = former._replace(stem=(former.stem + 1) % NUM_STEMS)
        self._former[p, uid] = shape
        self._num_tails += 1
        number = len(self._world.prompts) + sum(event.name == "prefill" for event in self._planned)
        if self._world.members[p].simulation is not None:  # else no prompt gets this number now
            self._asked[number] = shape, self._num_tails
            self._ready.append(number)
        return Event("prefill", (*shape, self._num_tails), p)

    def _decode(self) -> Event:
        """D hears of a prompt: early, as soon as P has taken it; or when a lease has begun; or again, or of another."""
        dice, prompts = self._dice, self._world.prompts
        early = dice.chance(self._share_early)
        known = [number for number in self._ready if number < len(prompts)]
        ready = [number for number in known if early or prompts[number].latest != prompts[number].first]
        lent = [number for number in ready if self._is_lent(number)]
        ready = lent if lent and dice.chance(0.9) else ready
        again = bool(prompts) and (not ready or dice.chance(self._share_again))
        if again and self._asked and (ready or dice.chance(0.1)):
            asked = [number for number in self._asked if number < len(prompts)]
            twins = [number for number in asked if self._has_twin(number)]
            number = dice.pick(twins if twins and dice.chance(0.7) else asked)
        elif ready:
            number = ready[-1] if dice.chance(0.7) else dice.pick(ready)
            self._ready.remove(number)
        else:
            return self._serve()
        return self._ask_d(number)

    def _has_twin(self, number: int) -> bool:
        """Whether a later incarnation of P lends another prompt under the same uid."""
        prompt = self._world.prompts[number]
        member = self._world.members[prompt.engine]
        if member.site is None or member.by_uid.get(prompt.uid) in (None, number):
            return False
        return member.site.endpoint.lender.lent(prompt.uid) is not None

    def _is_lent(self, number: int) -> bool:
        prompt = self._world.prompts[number]
        member = self._world.members[prompt.engine]
        if member.site is None or member.by_uid.get(prompt.uid) != number:
            return False
        return member.site.endpoint.lender.lent(prompt.uid) is not None

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
