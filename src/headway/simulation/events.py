"""What happens in a simulated run: events, and traces of them that can be written down and run again.

An event names what it is about (a request by its uid, the oldest step in flight) and means something in whatever
state it finds: what names nobody present is a message about somebody unknown, and a launch with no room does nothing.
So any part of a trace is a trace, and a failing one can be cut down to what matters.
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
    "repeat": ("back",),  # a result that was answered before, so many answers ago
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
    "calm": (),  # the faults stop: whatever is under way goes on until it ends
}
"""Every event, with the names of its integers. The last one may be a list: "uids"."""

OUTCOMES = ("ok", "failed", "too few tokens", "too many tokens")
PREPARATIONS = ("as it was", "another prompt", "failed", "a prompt that cannot fit")


class Event(NamedTuple):
    """One thing that happens. args: as `EVENTS` names them; uids are what is left after the others."""

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
    """A trace as `str` writes it; empty lines and lines that begin with # are passed over.

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
