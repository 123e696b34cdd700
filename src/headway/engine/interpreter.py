"""The settings of Python in an engine process: how long a thread runs before another, and when garbage is collected.

docs/architecture.md has the measurements behind them.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_INTERVAL = 0.0005  # seconds that a thread may run while another thread waits for the interpreter
FULL_COLLECTION = 1_000  # collections of the middle age class before a full collection, in a busy engine
_TIDY = 10  # collections of the middle age class before a full collection, in an idle engine


def settle() -> None:
    """Set the interpreter, after start-up. Objects that exist now live as long as the process: no collection visits
    them again. Later objects are collected young. Full collections are left to idle moments; see `tidy`."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_COLLECTION)


def unsettle() -> None:
    """For the end of the process: libraries complain at exit of objects that live on, and frozen objects do."""
    gc.unfreeze()


def tidy() -> None:
    """A full collection, if there may be something to collect. Call it while the engine has no work."""
    if gc.get_count()[2] >= _TIDY:
        gc.collect()


@contextmanager
def settled() -> Iterator[None]:
    """`settle` for the time of a `with` block. The settings before it come back at its end."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    settle()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()
