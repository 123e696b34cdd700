"""How the interpreter of an engine process is set."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest

from headway.engine import interpreter


class Knot:
    """Refers to itself, so that only a collection takes it away."""

    def __init__(self) -> None:
        self.me = self


def test_what_was_there_is_not_looked_at_again_and_full_collections_are_rare() -> None:
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    with interpreter.settled():
        assert sys.getswitchinterval() == pytest.approx(interpreter.SWITCH_INTERVAL)
        assert gc.get_threshold() == (*thresholds[:2], interpreter.FULL_COLLECTION)
        assert gc.get_freeze_count() > 10_000 and gc.isenabled()
    assert (sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()) == (interval, thresholds, 0)


def test_it_is_as_before_also_after_an_error() -> None:
    before = sys.getswitchinterval(), gc.get_threshold()
    with pytest.raises(KeyError), interpreter.settled():
        raise KeyError
    assert (sys.getswitchinterval(), gc.get_threshold()) == before and not gc.get_freeze_count()


def test_an_idle_moment_is_used_if_there_is_something_to_collect() -> None:
    with interpreter.settled():
        interpreter.tidy()
        knot = Knot()
        gone = weakref.ref(knot)
        gc.collect(1)  # it has grown old
        del knot
        for _ in range(20):
            gc.collect(1)
        assert gone() is not None
        interpreter.tidy()
        assert gone() is None
