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

from headway.simulation.setting import Setting, WorldSetting
from headway.simulation.shapes import Shape

EVENTS: dict[str, tuple[str, ...]] = {
    # the device
    "launch": (),
    "answer": ("outcome",),  # of the oldest step in flight: one of OUTCOMES
    "repeat": ("back",),  # an earlier result again, `back` results ago
    "stray": ("step",),  # a result of a step that is not in flight
    "lose": (),
    "acknowledge": ("slot", "back"),  # back: of the request so many generations before
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
    "hold": (),
    "lift_hold": (),
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

WORLD_EVENTS: dict[str, tuple[str, ...]] = {
    # requests. tail: what their own tokens are, the same on every engine
    "prefill": (*Shape._fields, "tail"),  # at P, which lends the KV
    "decode": (*Shape._fields, "tail", "number", "how"),  # at D. number: of a reference; how: one of REFERENCES
    # the writer of an engine and its connector
    "carry_out": ("count",),  # effects, by the connector
    "drain": ("count",),  # messages of the connector, by the core
    # the network between the engine D and `peer`, a P
    "serve": ("peer", "count"),  # D's thread of this peer takes messages, and does what is due
    "copy": ("peer", "which", "count"),  # a read goes on by so many places; 0: a reader that is to stop has stopped
    "cut": ("peer", "how", "lost"),  # one of CUTS. lost: messages, the last ones, that never arrive
    # the network between the engine P and `peer`, a D
    "listen": ("peer", "back", "count", "stuck"),  # back: at an older connection. stuck: P's writer does not answer
    # peers
    "die": ("silent", "lost"),  # silent: the network does not tell the others
    "restart": (),
}
"""The events of a world of several engines, beside those of `EVENTS`. Each happens at an engine."""

REFERENCES = ("the latest", "the first", "with a wrong seal", "to another request", "none", "of an unknown host")
CUTS = ("D notices", "P notices", "silence")
OUTCOMES = ("ok", "failed", "too few tokens", "too many tokens")
PREPARATIONS = ("as it was", "another prompt", "failed", "a prompt that cannot fit")


_ARGUMENTS = EVENTS | WORLD_EVENTS


class Event(NamedTuple):
    """One event. args: integers in the order of `EVENTS`; "uids" takes all remaining integers.
    at: the number of an engine, in a world of several; its text begins with it."""

    name: str
    args: tuple[int, ...] = ()
    at: int | None = None

    def __str__(self) -> str:
        names, words = _ARGUMENTS[self.name], [self.name] if self.at is None else [str(self.at), self.name]
        if names and names[-1] == "uids":
            return " ".join([*words, f"uids={','.join(map(str, self.args))}"])
        return " ".join([*words, *(f"{name}={arg}" for name, arg in zip(names, self.args, strict=True))])


@dataclass(frozen=True, slots=True)
class EventTrace:
    """A whole run: the same trace takes the same core through the same states."""

    setting: Setting | WorldSetting
    events: tuple[Event, ...]

    def __str__(self) -> str:
        what = "setting" if isinstance(self.setting, Setting) else "world"
        return "\n".join([f"{what} {self.setting}", *map(str, self.events)])


def read_events(path: Path) -> EventTrace:
    """Read a trace as `str` writes it. Empty lines and lines that begin with # are skipped.

    Raises ValueError, naming file, line and value, for a line that does not parse; OSError as `open` does.
    """
    setting: Setting | WorldSetting | None = None
    events: list[Event] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, _, rest = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        try:
            if setting is not None:
                events.append(_event([name, *rest.split()], setting))
            elif name == "world":
                setting = WorldSetting.parse(rest)
            elif name == "setting":
                setting = Setting.parse(rest)
            else:
                raise ValueError(f"a trace begins with a line `setting {{...}}`, or `world {{...}}`, got {name!r}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if setting is None:
        raise ValueError(f"{path} is empty: a trace begins with a line `setting {{...}}`")
    return EventTrace(setting, tuple(events))


def _event(words: Sequence[str], setting: Setting | WorldSetting) -> Event:
    at = None
    if isinstance(setting, WorldSetting) and words[0].isdecimal() and len(words) > 1:
        at, words = int(words[0]), words[1:]
        if at >= len(setting.engines):
            raise ValueError(f"there is no engine {at}; they are numbered from 0 to {len(setting.engines) - 1}")
    name, *words = words
    names = _ARGUMENTS.get(name)
    if names is None:
        raise ValueError(f"there is no event {name!r}")
    if (name in WORLD_EVENTS) and at is None:
        raise ValueError(f"{name} happens at an engine of a world: `0 {name}`")
    given = dict(word.partition("=")[::2] for word in words)
    if set(given) != set(names):
        raise ValueError(f"{name} takes {', '.join(names) or 'nothing'}; got {', '.join(given) or 'nothing'}")
    return Event(name, tuple(_integers(given[key] for key in names)), at)


def _integers(texts: Iterable[str]) -> Iterable[int]:
    for text in texts:
        yield from (int(part) for part in text.split(",") if part)
