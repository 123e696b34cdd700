"""Ctrl-C always ends a command."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

import pytest

from headway import cli
from headway.commands.interrupts import Interrupts
from headway.simulation import simulate


def swallowed_interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt):  # as numpy does in some of its looks at an object
        signal.raise_signal(signal.SIGINT)


def test_simtest_ends_by_an_interrupt_that_numpy_swallowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_seed, seeds = simulate.run_seed, []

    def interrupted(seed: int, *rest: Any) -> Any:
        seeds.append(seed)
        if seed == 2:
            swallowed_interrupt()
        return run_seed(seed, *rest)

    monkeypatch.setattr(simulate, "run_seed", interrupted)
    assert cli.main(["simtest", "--seeds", "1..5", "--steps", "20"]) == 130
    assert seeds == [1, 2]


def test_an_interrupt_is_raised_at_once_and_the_handler_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt), Interrupts.noted():
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert not reached and signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_was_swallowed_at_the_very_end_is_raised_there() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts.noted():
        swallowed_interrupt()
