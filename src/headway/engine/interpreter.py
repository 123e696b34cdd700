"""How the interpreter of an engine process is set: how threads take turns, and when garbage is collected."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_INTERVAL = float(os.environ.get("SWI", "0.0005"))


@contextmanager
def settled() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()
    if os.environ.get("NOGC"):
        gc.set_threshold(700, 10, 1 << 30)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()
