"""What an engine says while it loads, so that no long silence looks like a stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

logger = logging.getLogger(__name__)

AGAIN_S = 5.0  # seconds after which a stage is named again


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Say that `what` begins, and again every AGAIN_S seconds for as long as the block runs."""
    logger.info("%s", what)
    over = threading.Event()
    reminder = threading.Thread(target=partial(_say_again, what, over), name="headway-stage", daemon=True)
    reminder.start()
    try:
        yield
    finally:
        over.set()
        reminder.join()


def _say_again(what: str, over: threading.Event) -> None:
    began = time.monotonic()
    while not over.wait(AGAIN_S):
        logger.info("still %s, after %.0f s", what, time.monotonic() - began)
