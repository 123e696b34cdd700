"""What the tests of findings share."""

from __future__ import annotations

import pytest

from tests.findings.original import make
from tests.managers.driving import Driver


@pytest.fixture
def driver(name: str) -> Driver:
    """A manager with room for all requests."""
    return Driver(make(name))
