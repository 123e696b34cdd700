"""What an engine says while it loads."""

from __future__ import annotations

import threading

import pytest

from headway.executor import load_stages
from headway.executor.load_stages import stage


def reminders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "headway-stage"]


def test_a_stage_is_named_once_if_it_is_short(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "headway")
    with stage("reading"):
        pass
    assert [record.message for record in caplog.records] == ["reading"]


def test_a_long_stage_is_named_again_until_it_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "headway")
    monkeypatch.setattr(load_stages, "AGAIN_S", 0.001)
    said = threading.Event()
    monkeypatch.setattr(load_stages.logger, "info", lambda text, *args: said.set() if "still" in text else None)
    with stage("reading"):
        assert said.wait(60)
    assert not reminders()


def test_a_stage_that_fails_is_over() -> None:
    with pytest.raises(ValueError, match="bad"), stage("reading"):
        raise ValueError("bad")
    assert not reminders()
