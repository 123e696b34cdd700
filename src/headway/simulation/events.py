"""The events of a simulated run, and traces of events that can be written down and run again.

An event names its object: a request by its uid, or the oldest step in flight. It makes sense in any state: a uid that
is not in the core makes a message about an unknown request, and a launch at full depth does nothing. So any part of a
trace is a trace, and a failing trace can be shortened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from headway.simulation.setting import Setting
from headway.simulation.shapes import Shape

EVENTS: dict[str, tuple[str, ...]] = {
    # the device
    "launch": (),
    "answer": ("outcome",),  # of the oldest step in flight: one of OUTCOMES
    "repeat": ("back",),  # an earlier result again, `back` results ago
    "stray": ("step",),  # a result of a step that is not in flight
    "lose": (),
    # requests
    "add": Shape._fields,
    "abort": ("uids",),
    "finish": ("uids",),
    "look": ("uids",),
    "publish": ("uids",),
    "prepared": ("uid", "outcome"),  # one of PREPARATIONS
    # P and D
    "reserve": (*Shape._fields, "of", "timeout_ms"),  # of: 0 of P, 1 of D
    "start_prefill": ("uids",),
    "start_decode": ("uid",),
    "drop": ("uids",),
    "sent": ("uid", "failed"),
    "pull": Shape._fields,
    "carry": ("uid", "num_blocks"),
    "received": ("uid", "outcome"),  # one of connector.OUTCOMES
    "lend": Shape._fields,
    "consume": ("uid", "generation"),
    "renew": ("uids",),
    "release": ("uids",),
    # control
    "pause": ("abort", "reset"),
    "resume": (),
    "preempt_all": (),
    "clear": (),
    "reset_cache": (),
    # reads and the clock
    "progress": ("uid",),
    "audit": (),
    "await_steps": (),
    "wait": ("ms",),
    "tick": (),
    "calm": (),  # the faults stop, and the run goes on until every request has ended
}
"""Every event, with the names of its integers. The last name may stand for a list: "uids"."""

OUTCOMES = ("ok", "failed", "too few tokens", "too many tokens")
PREPARATIONS = ("as it was", "another prompt", "failed", "a prompt that cannot fit")


class Event(NamedTuple):
    """One event. args: integers in the order of `EVENTS`; "uids" takes all remaining integers."""

    name: str
    args: tuple[int, ...] = ()

    def __str__(self) -> str:
        names = EVENTS[self.name]
        if names and names[-1] == "uids":
            return " ".join([self.name, f"uids={','.join(map(str, self.args))}"])
        return " ".join([self.name, *(f"{name}={arg}" for name, arg in zip(names, self.args, strict=True))])


@dataclass(frozen=True, slots=True)
class EventTrace:
    """A whole run: the same trace takes the same core through the same states."""

    setting: Setting
    events: tuple[Event, ...]

    def __str__(self) -> str:
        return "\n".join([f"setting {self.setting}", *map(str, self.events)])


def read_events(path: Path) -> EventTrace:
    """Read a trace as `str` writes it. Empty lines and lines that begin with # are skipped.

    Raises ValueError, naming file, line and value, for a line that does not parse; OSError as `open` does.
    """
    setting: Setting | None = None
    events: list[Event] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, _, rest = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        try:
            if setting is None:
                if name != "setting":
                    raise ValueError(f"a trace begins with a line `setting {{...}}`, got {name!r}")
                setting = Setting.parse(rest)
            else:
                events.append(_event(name, rest.split()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if setting is None:
        raise ValueError(f"{path} is empty: a trace begins with a line `setting {{...}}`")
    return EventTrace(setting, tuple(events))


def _event(name: str, words: Sequence[str]) -> Event:
    names = EVENTS.get(name)
    if names is None:
        raise ValueError(f"there is no event {name!r}")
    given = dict(word.partition("=")[::2] for word in words)
    if set(given) != set(names):
        raise ValueError(f"{name} takes {', '.join(names) or 'nothing'}; got {', '.join(given) or 'nothing'}")
    return Event(name, tuple(_integers(given[key] for key in names)))


def _integers(texts: Iterable[str]) -> Iterable[int]:
    for text in texts:
        yield from (int(part) for part in text.split(",") if part)
