"""Tries the orders in which threads can take turns, instead of hoping that the bad one comes up.

The actors of a play run on threads of their own, one at a time, and can be interrupted before every line of the
managers that touches what others touch. `explore` plays without an interruption first, then with one at each possible
place, then with two, and so on: most bugs of concurrency need no more than two. Where an actor waits (for an answer,
for a lock) another one goes on.
"""

from __future__ import annotations

import inspect
import itertools
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import pytest

from headway.managers import Door, LockedManager, LockFreeManager, Manager, query
from headway.managers.query import QueryDesk, checked_timeout
from headway.managers.surface import Surface
from tests.managers.driving import PATIENCE

_FILES = frozenset(map(inspect.getfile, (Surface, Manager, Door, LockedManager, LockFreeManager)))
_QUERY = inspect.getfile(QueryDesk)  # has tests of its own for every moment; here it mostly counts as one step

# Functions that touch nothing that others touch, or one such thing: an interruption before them says it all.
_FUNCTIONS: tuple[Any, ...] = (
    checked_timeout,
    *(Surface._reason, Surface._check_open, Surface._uids),
    *(Manager.snapshot, Manager._publish, Manager._tick),
    *(Door.inside, Door.accept, Door.uids_of),
    *(QueryDesk.take, QueryDesk.serve_here),
)
_LEFT = [const for const in Surface._ask.__code__.co_consts if isinstance(const, CodeType)]  # its look at the clock
_ALONE = frozenset([*_LEFT, *(function.__code__ for function in _FUNCTIONS)])
_NAMELESS = {"<lambda>", "<genexpr>", "<listcomp>", "__init__"}

_THREADS = ThreadPoolExecutor(thread_name_prefix="actor")

Interruption = tuple[int, int]  # (before this step, go on with this actor)


class DeadlockError(BaseException):
    """All actors wait. Not an Exception, so that no actor takes it for an answer."""


class Actor:
    """One of those on the stage."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act
        self.turn = threading.Lock()
        self.turn.acquire()
        self.comes: Callable[[], bool] | None = None  # what it waits for
        self.has_limit = False  # its wait has an end
        self.ended = False

    @property
    def can_go_on(self) -> bool:
        return not self.ended and (self.comes is None or self.comes())


class Stage:
    """Where one play is given, by actors in this order, with these interruptions.

    Where one cannot go on, the next in order does; after the last comes the first.

    choices: the interruptions that would have been possible after the last one, if they are asked for.
    """

    def __init__(
        self,
        order: Sequence[int] = (),
        interruptions: tuple[Interruption, ...] = (),
        *,
        notes_choices: bool = False,
        within_queries: bool = False,
    ) -> None:
        self._files = _FILES | {_QUERY} if within_queries else _FILES
        self._order = order
        self._interruptions = deque(interruptions)
        self._notes_choices = notes_choices
        self._actors: list[Actor] = []
        self._now: Actor | None = None
        self._step = 0
        self._deadlock = False
        self.choices: list[Interruption] = []

    def play(self, **acts: Callable[[], Any]) -> dict[str, Any]:
        """Returns what each returned, or the exception that it raised."""
        cast = [Actor(act) for act in acts.values()]
        outcomes = [_THREADS.submit(self._perform, actor) for actor in cast]
        self._actors = [cast[i] for i in self._order] or cast
        self._now = self._actors[0]
        self._now.turn.release()
        return {name: _outcome_of(future) for name, future in zip(acts, outcomes, strict=True)}

    def wait_until(self, comes: Callable[[], bool], *, has_limit: bool = False) -> None:
        """Go on when it has come; others go on meanwhile. A wait with a limit ends when no other actor can go on.

        For actors; for any other thread it must have come already.
        """
        me = self._now
        if me is None:
            assert comes(), "no other actor is there that could bring it about"
            return
        me.comes, me.has_limit = comes, has_limit
        while not comes():
            heir = self._heir()
            if heir is not None:
                self._give_turn_to(heir)
            if self._deadlock:
                raise DeadlockError
            if has_limit and not any(other.can_go_on for other in self._actors if other is not me):
                break
        me.comes = None

    def _perform(self, me: Actor) -> Any:
        me.turn.acquire()
        tracer = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            return me.act()
        finally:
            sys.settrace(tracer)
            me.ended = True
            heir = self._heir()
            if heir is not None:
                self._now = heir
                heir.turn.release()
            else:
                self._now = None

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in self._files or code in _ALONE or code.co_name in _NAMELESS:
            return None
        return self._on_line

    def _on_line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event != "line":
            return self._on_line
        step, self._step = self._step, self._step + 1
        if self._interruptions:
            if self._interruptions[0][0] == step:
                self._give_turn_to(self._actors[self._interruptions.popleft()[1]])
        elif self._notes_choices:
            others = enumerate(self._actors)
            self.choices += [(step, i) for i, other in others if other is not self._now and other.can_go_on]
        return self._on_line

    def _heir(self) -> Actor | None:
        """The actor to go on when this one cannot: one is ready, or its time is up, or it must hear that all wait."""
        assert self._now is not None
        me = self._actors.index(self._now)
        left = [actor for actor in self._actors[me:] + self._actors[:me] if not actor.ended]
        others = [actor for actor in left if actor is not self._now]
        able = [actor for actor in others if actor.can_go_on]
        self._deadlock |= bool(left) and not able and not any(actor.has_limit for actor in left)
        late = [actor for actor in others if actor.has_limit]
        return next(iter(able or late or others), None)

    def _give_turn_to(self, other: Actor) -> None:
        me = self._now
        assert me is not None
        self._now = other
        other.turn.release()
        assert me.turn.acquire(timeout=PATIENCE), "the others do not end"


def _outcome_of(future: Future[Any]) -> Any:
    error = future.exception(timeout=PATIENCE)
    if isinstance(error, DeadlockError | AssertionError):
        raise error
    return future.result() if error is None else error


def explore(
    play: Callable[[Stage], None], num_actors: int = 2, max_interruptions: int = 1, *, within_queries: bool = False
) -> int:
    """Give the play on a new stage for every order of the actors and every choice of so many interruptions. Returns
    how many times that was."""
    todo: list[tuple[tuple[int, ...], tuple[Interruption, ...]]]
    todo = [(order, ()) for order in itertools.permutations(range(num_actors))]
    count = 0
    while todo:
        order, interruptions = todo.pop()
        has_more = len(interruptions) < max_interruptions
        stage = Stage(order, interruptions, notes_choices=has_more, within_queries=within_queries)
        try:
            play(stage)
        except BaseException as error:
            error.add_note(f"in the play with the order {order} and the interruptions {interruptions}")
            raise
        count += 1
        todo += [(order, (*interruptions, choice)) for choice in stage.choices]
    return count


# -- where actors wait -------------------------------------------------------------------------------------------


class Box:
    """What `queue.SimpleQueue` is to a query. A wait with a limit ends when no other actor can go on, or at once."""

    def __init__(self, stage: Stage, patient: bool) -> None:
        self._stage = stage
        self._patient = patient
        self._kept: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._kept.append(item)

    def get(self, timeout: float | None = None) -> Any:
        if timeout is None or self._patient:
            self._stage.wait_until(lambda: bool(self._kept), has_limit=timeout is not None)
        if not self._kept:
            raise queue.Empty
        return self._kept.popleft()


class Lock:
    """What `threading.Condition` is to a manager. A wait with a limit does not end before the lock is free."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._owner: int | None = None
        self._depth = 0

    def acquire(self, timeout: float = -1) -> bool:
        me = threading.get_ident()
        self._stage.wait_until(lambda: self._owner in (None, me))
        self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None

    def notify_all(self) -> None:
        """No thread sleeps here."""

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def on_stage(manager: Manager, stage: Stage, monkeypatch: pytest.MonkeyPatch, *, patient: bool = True) -> Manager:
    """The manager, whose callers wait on this stage. patient: a query times out when no other actor can go on; else at
    once, if it has to wait."""
    boxes = SimpleNamespace(SimpleQueue=lambda: Box(stage, patient), Empty=queue.Empty)
    monkeypatch.setattr(query, "queue", boxes)
    if hasattr(manager, "_lock"):
        manager._lock = Lock(stage)
    return manager
