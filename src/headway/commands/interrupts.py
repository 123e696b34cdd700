"""Ctrl-C that is not lost: numpy can swallow the KeyboardInterrupt of a signal that comes while numpy looks at an
object."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Remembers that SIGINT came, so that a swallowed KeyboardInterrupt can be raised once more."""

    def __init__(self) -> None:
        self._came = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if SIGINT has come."""
        if self._came:
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        raise KeyboardInterrupt

    @classmethod
    @contextmanager
    def noted(cls) -> Iterator[Interrupts]:
        """Note every SIGINT of a `with` block, on the main thread. It is raised at once too, as usual."""
        interrupts = cls()
        before = signal.signal(signal.SIGINT, interrupts._note)
        try:
            yield interrupts
        finally:
            signal.signal(signal.SIGINT, before)
        interrupts.check()
