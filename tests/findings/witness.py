"""What shows a flaw of timing without a clock: counting, looking for locks, and questions that must come back."""

from __future__ import annotations

import gc
import io
import queue
import sys
import threading
import time
from _multiprocessing import SemLock
from collections.abc import Callable
from types import FrameType, FunctionType, ModuleType
from typing import Any

SOON = 30.0  # seconds after which a caller that should have come back counts as blocked


def instructions(act: Callable[[], object]) -> int:
    """Python instructions that a call takes; what NumPy and the interpreter do inside one is not counted.

    So a loop over N things counts N times whatever its form, a vector operation on N rows counts once.
    """
    count = 0

    def on_event(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        count += event == "opcode"
        return on_event

    before = sys.gettrace()
    sys.settrace(on_event)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Semaphore, threading.Event)
# Objects of C whose lock nothing in Python refers to. (`queue.Queue` and their like are made of locks of Python.)
_LOCKS_INSIDE = (queue.SimpleQueue, SemLock, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.BufferedRWPair)


def locks_in(thing: object) -> list[object]:
    """Every lock that can be reached from a thing, through whatever it is made of, and every object known to hold one
    where Python cannot see it."""
    found: list[object] = []
    seen, todo = {id(thing)}, [thing]
    while todo:
        one = todo.pop()
        if isinstance(one, _LOCKS + _LOCKS_INSIDE):
            found.append(one)
            continue
        # Of a function what it closes over; what it refers to beside that is its whole module.
        parts = one.__closure__ or () if isinstance(one, FunctionType) else gc.get_referents(one)
        for part in parts:
            if id(part) not in seen and not isinstance(part, (type, ModuleType)):
                seen.add(id(part))
                todo.append(part)
    return found


class Asked:
    """A question, asked on a thread of its own."""

    def __init__(self, question: Callable[[], Any]) -> None:
        self._question = question
        self._outcome: Any = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self._outcome = self._question()
        except BaseException as error:
            self._outcome = error

    def is_waiting(self) -> bool:
        """Whether it still waits, and goes on waiting for a moment."""
        self._thread.join(0.05)
        return self._thread.is_alive()

    def outcome(self, meanwhile: Callable[[], object] = lambda: None) -> Any:
        """What it returned, or the exception that it raised. meanwhile: what this thread goes on doing."""
        until = time.monotonic() + SOON
        while self._thread.is_alive():
            assert time.monotonic() < until, "the caller is blocked"
            meanwhile()
            self._thread.join(0.002)
        return self._outcome


def comes(condition: Callable[[], object]) -> bool:
    """Whether it comes true soon."""
    until = time.monotonic() + SOON
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True
