"""V1 and V2 told the same in the same order decide the same, byte for byte: every batch, every effect, every state.

What is recorded is what goes into the core and what comes out of it, so nothing that a manager adds on the way can
hide a difference. The clock is the test's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headway.config import Role
from headway.errors import EnginePausedError
from headway.managers import lock_free, locked, surface
from headway.managers import manager as manager_module
from headway.request import Request, Transfer
from headway.scheduler import Snapshot
from tests.managers.driving import Asking
from tests.managers.world import World, world

NUM_TURNS = 1000
NUM_RECENT = 9  # requests that are still spoken of


def written(value: Any) -> Any:
    """A value as what it is made of: arrays with their type and bytes, requests by their number."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Request):
        return "request", value.uid, value.request_id, value.prompt.tobytes(), value.max_tokens
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, *(written(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, tuple | list):
        return tuple(written(one) for one in value)
    return value


def recorded(one: World) -> list[Any]:
    """Everything that its core is told and answers from here on, and the state after each."""
    core, log = one.manager._core, []

    def recording(name: str) -> Callable[..., Any]:
        carried_out = getattr(core, name)

        def record(*args: Any) -> Any:
            answer = carried_out(*args)
            log.append((name, written(args), written(answer), tuple(core.snapshot())))
            return answer

        return record

    for name in ("apply", "ask", "schedule", "prefill_schedule", "take_pulls"):
        setattr(core, name, recording(name))
    return log


class Script:
    """Draws what is done to a world, from a seed and from what is there."""

    def __init__(self, seed: int, one: World, clock: SimpleNamespace) -> None:
        self._dice = random.Random(seed)
        self._world = one
        self._clock = clock
        self._names: list[str] = ["unknown"]
        self._reservations: list[Asking[Any]] = []
        self._stems = [[self._dice.randrange(1, 900) for _ in range(20)] for _ in range(2)]
        manager, role = one.manager, one.manager.config.role
        self._deeds = [
            *[self._add] * (18 if role is Role.MIXED else 5),
            lambda: manager.abort(self._some()),
            lambda: manager.finish(self._some()),
            lambda: manager.publish_output(self._some()),
            manager.preempt_all,
            *[one.launch] * 40,
            *[one.post] * 40,
            lambda: one.post("out of memory"),
            one.prepare,
            one.prepare,
            one.prepare,
            lambda: one.prepare("a broken image"),
            lambda: one.ask(manager.reset_prefix_cache),
            lambda: one.ask(partial(manager.pause, self._dice.choice(["preempt", "abort"]), timeout=20)),
            *[manager.resume] * 4,
            self._wait,
        ]
        if role is not Role.PREFILL:
            self._deeds += [partial(self._add, Transfer.PULL)] * 6 + [one.pulled] * 6 + [one.connectors_stop]
            self._deeds += [lambda: one.pulled(with_token=False), lambda: one.pulled(error="P is gone")]
        if role is not Role.DECODE:
            self._deeds += [partial(self._add, Transfer.LEND)] * 6 + [one.consume] * 3
            self._deeds += [lambda: manager.renew_leases(one.lent), lambda: manager.end_leases([*one.lent][:1])]
        if role is Role.MIXED:
            self._deeds += [manager.clear, one.lose_device]
        else:
            self._deeds += [self._reserve] * 12 + [self._start] * 12
            self._deeds += [one.send] * 6 + [lambda: one.send(error="the link is down")]
            self._deeds += [lambda: manager.drop_reservations(self._some())]

    def turn(self) -> None:
        """One thing, applied before the next: whether words become a message at all depends on who is inside."""
        self._dice.choice(self._deeds)()
        self._world.drain()
        while self._reservations:
            with suppress(EnginePausedError):
                self._reservations.pop().answer()  # so that what comes next does not depend on a thread

    def _some(self) -> list[str]:
        return [self._one() for _ in range(self._dice.choice([1, 1, 2]))]

    def _one(self) -> str:
        return self._dice.choice(self._names[-NUM_RECENT:])

    def _new(self) -> str:
        self._names.append(f"r{len(self._names)}")
        return self._names[-1]

    def _prompt(self) -> list[int]:
        return [*self._dice.choice(self._stems)[: self._dice.randrange(1, 20)], self._dice.randrange(900)]

    def _add(self, transfer: Transfer | None = None) -> None:
        options: dict[str, Any] = {"preprocess": b"an image"} if self._dice.random() < 0.2 else {}
        options["transfer"] = transfer
        options["priority"] = self._dice.choice([0, 0, 1])
        self._world.add(self._new(), self._prompt(), self._dice.randrange(1, 30), **options)

    def _reserve(self) -> None:
        self._reservations.append(self._world.reserve(self._new(), self._prompt(), self._dice.randrange(1, 30)))

    def _start(self) -> None:
        """Take up a reservation; on D once nothing in flight can write to its blocks any more."""
        one, manager = self._world, self._world.manager
        request_id = self._dice.choice([*one.reservations, "unknown"][-3:])
        if manager.config.role is Role.PREFILL:
            manager.start_prefill([request_id])
        elif request_id in one.reservations:
            now = manager.snapshot()
            if now.step_id - now.num_in_flight >= one.reservations[request_id].after_step:
                one.receive(request_id)
                del one.reservations[request_id]

    def _wait(self) -> None:
        self._clock.now += self._dice.choice([0.01, 0.1, 40.0])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, as managers see it. It stands still unless the script says otherwise."""
    one = SimpleNamespace(now=1000.0)
    for module in (manager_module, lock_free, locked, surface):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: one.now))
    return one


def life_of(name: str, seed: int, role: Role, clock: SimpleNamespace) -> tuple[list[Any], Snapshot]:
    clock.now = 1000.0
    one = world(
        name,
        role=role,
        num_blocks=17,
        max_num_batched_tokens=24,
        enable_priority_preemption=bool(seed % 2),
        ageing_seconds=5.0 * (seed % 3),
    )
    log = recorded(one)
    script = Script(seed, one, clock)
    for _ in range(NUM_TURNS):
        script.turn()
    lived = list(log), one.manager.snapshot()
    one.run()
    one.check()
    return lived


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("seed", range(6))
def test_v1_and_v2_decide_the_same(seed: int, role: Role, clock: SimpleNamespace) -> None:
    (first, end), (second, _) = life_of("v1", seed, role, clock), life_of("v2", seed, role, clock)
    for one, other in zip(first, second, strict=True):
        assert one == other
    batches = [answer for name, _, answer, _ in first if name != "apply" and answer is not None]
    assert len(batches) > 20 and end.num_prefix_hit_tokens, "a dull life proves nothing"
    assert end.num_preemptions or role is Role.PREFILL, "nor does one without preemptions"
