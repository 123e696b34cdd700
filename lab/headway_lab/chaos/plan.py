"""Which faults come when. The same seed gives the same plan; what comes of it depends on the machine."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")

BETWEEN = (2.0, 5.0)  # seconds from one fault to the next
IDLE_S = 10.0


class FaultKind(StrEnum):
    """The words are those of the table."""

    KILL_ENGINE = "kill -9 of an engine process"
    KILL_API = "kill -9 of an API process"
    STOP_ENGINE = "SIGSTOP of an engine process"
    STOP_API = "SIGSTOP of an API process"
    CUT = "connections cut"
    DELAY = "connections delayed"
    ABORTS = "abort storm"
    PAUSE = "pause and resume"
    IDLE = "idle"


_LENGTHS = {  # seconds
    FaultKind.STOP_ENGINE: (0.5, 6.0),
    FaultKind.STOP_API: (0.5, 6.0),
    FaultKind.CUT: (0.2, 5.0),
    FaultKind.DELAY: (3.0, 9.0),
    FaultKind.PAUSE: (0.5, 4.0),
    FaultKind.IDLE: (IDLE_S, IDLE_S),
}
_WIRES = (FaultKind.CUT, FaultKind.DELAY)
_ALL = (FaultKind.ABORTS, FaultKind.IDLE)


@dataclass(frozen=True, slots=True)
class Fault:
    """at: seconds from the beginning. target: a server, a wire, or "all". seconds: how long it lasts. delay: seconds
    that bytes are late. mode: of a pause."""

    at: float
    kind: FaultKind
    target: str
    seconds: float = 0.0
    delay: float = 0.0
    mode: str = ""


def plan(seed: int, seconds: float, servers: Sequence[str], wires: Sequence[str]) -> list[Fault]:
    """Faults that begin within `seconds`. Every kind comes before any kind comes twice, and so do the targets of each
    kind. Nothing else begins while all is idle."""
    dice = random.Random(seed)
    kinds = _dealt(dice, list(FaultKind))
    targets = {kind: _dealt(dice, wires if kind in _WIRES else servers) for kind in FaultKind if kind not in _ALL}
    faults = []
    now = dice.uniform(*BETWEEN)
    while now < seconds:
        kind = next(kinds)
        target = "all" if kind in _ALL else next(targets[kind])
        low, high = _LENGTHS.get(kind, (0.0, 0.0))
        length, delay, mode = dice.uniform(low, high), dice.uniform(0.02, 1.0), dice.choice(("abort", "keep"))
        fault = Fault(
            now,
            kind,
            target,
            seconds=length,
            delay=delay if kind is FaultKind.DELAY else 0.0,
            mode=mode if kind is FaultKind.PAUSE else "",
        )
        faults.append(fault)
        now += dice.uniform(*BETWEEN) + (length if kind is FaultKind.IDLE else 0.0)
    return faults


def _dealt(dice: random.Random, cards: Sequence[T]) -> Iterator[T]:
    """All cards in a drawn order, again and again."""
    while True:
        yield from dice.sample(cards, len(cards))
