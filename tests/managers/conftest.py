"""What the managers' tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from headway.managers import lock_free
from tests.managers.driving import PATIENCE, Driver, make


@pytest.fixture
def driver(name: str) -> Driver:
    """A manager with room for all requests."""
    return Driver(make(name))


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(autouse=True)
def _turns_bounded_in_count_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what one `drain` applies does not depend on how busy the machine is."""
    monkeypatch.setattr(lock_free, "MAX_SECONDS_PER_TURN", PATIENCE)
