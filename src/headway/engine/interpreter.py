"""How the interpreter of an engine process is set: how threads take turns, and when garbage is collected.

The figures that both were chosen by stand in docs/architecture.md.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_INTERVAL = 0.0005  # seconds that a thread may keep the interpreter while another one wants it
FULL_COLLECTION = 1_000  # collections of the middle generation after which a busy engine makes a full one
_TIDY = 10  # the same for an idle one, which has the time


def settle() -> None:
    """After start-up: what there is now lives as long as the process, and no collection looks at it again. What comes
    later is collected young; a full collection is left for when there is nothing to do, see `tidy`."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_COLLECTION)


def tidy() -> None:
    """A full collection, if there may be something to collect. For a moment in which nobody waits for anything."""
    if gc.get_count()[2] >= _TIDY:
        gc.collect()


@contextmanager
def settled() -> Iterator[None]:
    """The same for a while, in a process that goes on to other things."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    settle()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()
