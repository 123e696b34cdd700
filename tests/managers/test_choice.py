"""Which manager runs: the name wins, then the two switches; decided in one place."""

from __future__ import annotations

import pytest

from headway.managers import (
    MANAGERS,
    V1_SWITCH,
    V2_SWITCH,
    LockedManager,
    LockFreeManager,
    StaticManager,
    choose_scheduler,
)
from headway.scheduler import DynamicAllocation, StaticAllocation

SWITCHES = (None, "0", "1", "", "yes")


@pytest.mark.parametrize(
    ("v1", "v2", "chosen"),
    [
        # ENABLE_V1, ENABLE_V2
        (None, None, "v2"),
        (None, "0", "v1"),
        (None, "1", "v2"),
        ("0", None, "v0"),
        ("0", "0", "v0"),
        ("0", "1", "v2"),
        ("1", None, "v1"),
        ("1", "0", "v1"),
        ("1", "1", "v2"),
        # anything but 1 does not switch V2 on; anything but 0 does not switch V1 off
        ("", None, "v1"),
        (None, "", "v1"),
        ("yes", "yes", "v1"),
        ("0", "yes", "v0"),
    ],
)
def test_without_a_name_the_switches_decide(v1: str | None, v2: str | None, chosen: str) -> None:
    environ = {name: value for name, value in ((V1_SWITCH, v1), (V2_SWITCH, v2)) if value is not None}
    assert choose_scheduler(None, environ) == chosen


@pytest.mark.parametrize("name", ["v0", "v1", "v2"])
@pytest.mark.parametrize("v1", SWITCHES)
@pytest.mark.parametrize("v2", SWITCHES)
def test_a_name_wins_over_both_switches(name: str, v1: str | None, v2: str | None) -> None:
    environ = {switch: value for switch, value in ((V1_SWITCH, v1), (V2_SWITCH, v2)) if value is not None}
    assert choose_scheduler(name, environ) == name  # type: ignore[arg-type]


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(V2_SWITCH, raising=False)
    monkeypatch.setenv(V1_SWITCH, "0")
    assert choose_scheduler() == "v0"
    monkeypatch.setenv(V2_SWITCH, "1")
    assert choose_scheduler() == "v2"


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"v0, v1, v2, got 'v3'"):
        choose_scheduler("v3")  # type: ignore[arg-type]


def test_the_names_stand_for_two_axes() -> None:
    """Policy: static in v0 alone. Access: v0 and v1 share the lock, v2 has none."""
    assert {"v0": StaticManager, "v1": LockedManager, "v2": LockFreeManager} == MANAGERS
    assert [kind.allocation for kind in MANAGERS.values()] == [StaticAllocation, DynamicAllocation, DynamicAllocation]
    assert issubclass(StaticManager, LockedManager)
    assert not issubclass(LockFreeManager, LockedManager)
