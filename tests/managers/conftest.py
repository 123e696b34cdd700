"""What the managers' tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.managers.driving import Driver, make


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
