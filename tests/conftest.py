"""What all tests share: how many examples Hypothesis tries, the managers that a test runs under, and turns
that no clock cuts short.

Profiles of Hypothesis, by HYPOTHESIS_PROFILE: `default` is small, for `make test`; `ci` tries four times as many, as
CI does; both try the same examples in every run. `explore` looks for new ones, many more.
"""

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from headway.engine import writer
from headway.managers import lock_free
from tests.engine.running import Clock
from tests.managers.driving import ACCESSES

settings.register_profile("default", derandomize=True, deadline=None, max_examples=25, print_blob=True)
settings.register_profile("ci", settings.get_profile("default"), max_examples=100)
settings.register_profile("explore", settings.get_profile("default"), max_examples=1000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(params=ACCESSES)
def name(request: pytest.FixtureRequest) -> str:
    """A manager of each way to reach the core; `every_manager` adds v0, which only allocates differently."""
    return str(request.param)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The writers of engines that are made from here on live by this clock."""
    clock = Clock()
    monkeypatch.setattr(writer, "time", clock)
    monkeypatch.setattr(writer, "_LONGEST_SLEEP", clock.LONGEST_SLEEP)
    return clock


@pytest.fixture(autouse=True)
def _turns_bounded_in_count_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what one `drain` applies does not depend on how busy the machine is."""
    monkeypatch.setattr(lock_free, "MAX_SECONDS_PER_TURN", 3600.0)


@pytest.fixture(autouse=True)
def _tracing_goes_on() -> Iterator[None]:
    """A test that traces puts back the tracer that it found: from then on the coverage of its worker would be lost."""
    before = sys.gettrace()
    yield
    assert sys.gettrace() is before, "the test has taken the tracer away; tests.findings.witness puts it back"
