"""What the tests of findings share."""

from __future__ import annotations

import pytest

from headway.managers import lock_free
from tests.findings.original import make
from tests.managers.driving import Driver


@pytest.fixture
def driver(name: str) -> Driver:
    """A manager with room for all requests."""
    return Driver(make(name))


@pytest.fixture(autouse=True)
def _turns_bounded_in_count_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what one `drain` applies does not depend on how busy the machine is."""
    monkeypatch.setattr(lock_free, "MAX_SECONDS_PER_TURN", 3600.0)
