"""Shortens a trace that breaks a rule: leaves events out while the same rule breaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from headway.simulation.events import EVENTS, WORLD_EVENTS, Event, EventTrace
from headway.simulation.setting import Setting, WorldSetting
from headway.simulation.shapes import Shape
from headway.simulation.simulate import run_trace

# The simplest setting and request. Minimising moves towards these values.
_PLAIN_SETTING: dict[str, Any] = {
    "deterministic": False,
    "num_speculative_tokens": 0,
    "quarantine_slots": False,
    "enable_output_caching": False,
    "enable_prefix_caching": False,
    "enable_priority_preemption": False,
    "max_num_partial_prefills": 0,
    "max_long_partial_prefills": 1,
    "long_prefill_token_threshold": 0,
    "encoder_cache_size": None,
    "reserve": "none",
    "max_bypass": 0,
    "ageing_seconds": 0.0,
    "victim": "last-in-line",
}
_ADDING = ("add", "reserve", "pull", "lend", "prefill", "decode")
_PLAIN_SHAPE = {**dict.fromkeys(Shape._fields, 0), "max_tokens": 1}


class _Spent(Exception):
    """The budget is spent; the best trace so far is the result."""


class _Search:
    """The shortest trace so far, and the number of events and messages that may still be run to shorten it."""

    def __init__(self, trace: EventTrace, rule: str, budget: int) -> None:
        self.best = trace
        self._rule = rule
        self._budget = budget

    def try_events(self, events: Sequence[Event]) -> bool:
        """Whether these events break the rule too. If so, they become the best trace."""
        return self._try(EventTrace(self.best.setting, tuple(events)))

    def try_setting(self, setting: Setting | WorldSetting) -> bool:
        """Whether the rule breaks with this setting too. If so, it becomes part of the best trace."""
        return self._try(EventTrace(setting, self.best.events))

    def _try(self, trace: EventTrace) -> bool:
        if self._budget <= 0:
            raise _Spent
        run = run_trace(trace)
        self._budget -= len(run.trace.events) + run.num_messages  # a calm is one event and many messages
        if run.violation is None or run.violation.rule != self._rule:
            return False
        self.best = run.trace
        return True


def minimise(trace: EventTrace, rule: str, budget: int = 200_000) -> EventTrace:
    """A trace that breaks the same rule, and from which no event can be left out; or the shortest found within the
    budget.

    budget: events and messages to run. Deterministic."""
    search = _Search(trace, rule, budget)
    try:
        _without_kinds(search)
        _without_parts(search)
        _without_requests(search)
        _plain_setting(search)
        before = None
        while before != search.best:
            before = search.best
            _simpler_shapes(search)
            _without_rounds(search)
            _without_parts(search)
    except _Spent:
        pass
    return search.best


def _without_kinds(search: _Search) -> None:
    for name in (*EVENTS, *WORLD_EVENTS):
        kept = [event for event in search.best.events if event.name != name]
        if len(kept) < len(search.best.events):
            search.try_events(kept)


def _without_requests(search: _Search) -> None:
    uids = [event.args[0] for event in search.best.events if event.name in _ADDING]
    for uid in uids:
        search.try_events(list(_without_uid(search.best.events, uid)))


def _without_uid(events: Sequence[Event], uid: int) -> Iterator[Event]:
    for event in events:
        names = (EVENTS | WORLD_EVENTS)[event.name]
        if names == ("uids",):
            if others := tuple(other for other in event.args if other != uid):
                yield event._replace(args=others)
        elif names[:1] != ("uid",) or event.args[0] != uid:
            yield event


def _without_parts(search: _Search) -> None:
    """Leave out halves, then quarters, down to single events, as long as this helps (delta debugging)."""
    size = max(1, len(search.best.events) // 2)
    while True:
        start, shorter = 0, False
        while start < len(search.best.events):
            events = search.best.events
            if search.try_events(events[:start] + events[start + size :]):
                shorter = True
            else:
                start += size
        if size == 1 and not shorter:
            return
        size = max(1, size // 2)


def _without_rounds(search: _Search) -> None:
    """Leave out a launch together with the answer to it."""
    i = 0
    while i < len(search.best.events):
        events = search.best.events
        answers = [j for j in range(i + 1, len(events)) if events[j].name == "answer"]
        together = events[i].name == "launch" and answers
        if not together or not search.try_events([e for j, e in enumerate(events) if j not in (i, answers[0])]):
            i += 1


def _plain_setting(search: _Search) -> None:
    for name, value in {"depth": 1, "static": False, **_PLAIN_SETTING}.items():
        setting = search.best.setting
        if isinstance(setting, Setting):
            if (simpler := _with(setting, name, value)) is not None:
                search.try_setting(simpler)
            continue
        for i in range(len(setting.engines)):
            world = search.best.setting
            assert isinstance(world, WorldSetting)
            if (simpler := _with(world.engines[i], name, value)) is not None:
                engines = (*world.engines[:i], simpler, *world.engines[i + 1 :])
                search.try_setting(replace(world, engines=engines))


def _with(setting: Setting, name: str, value: object) -> Setting | None:
    """The setting with this value; None if it has it already, or if the other options do not allow it."""
    try:
        if name in _PLAIN_SETTING:
            simpler = replace(setting, config=replace(setting.config, **{name: value}))  # type: ignore[arg-type]
        else:
            simpler = replace(setting, **{name: value})  # type: ignore[arg-type]
    except ValueError:
        return None
    return simpler if simpler != setting else None


def _simpler_shapes(search: _Search) -> None:
    """Make every argument of every request as small as possible."""
    for i, event in enumerate(search.best.events):
        if event.name in ("add", "reserve"):
            for name in Shape._fields[1:]:
                at = Shape._fields.index(name)
                for value in (_PLAIN_SHAPE[name], event.args[at] // 2, event.args[at] - 1):
                    if _try_argument(search, i, at, value):
                        break


def _try_argument(search: _Search, i: int, at: int, value: int) -> bool:
    """Whether the rule also breaks with this smaller argument of event i. If so, it becomes part of the best trace."""
    events = list(search.best.events)
    if i >= len(events) or not _PLAIN_SHAPE[Shape._fields[at]] <= value < events[i].args[at]:
        return False
    args = events[i].args
    events[i] = events[i]._replace(args=(*args[:at], value, *args[at + 1 :]))
    return search.try_events(events)
