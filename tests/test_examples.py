"""The examples run, and stay as short as they promise."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_own_engine_answers_every_request_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    path = EXAMPLES / "own_engine.py"
    assert len(path.read_text().splitlines()) <= 60
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would raise
    finished = runpy.run_path(str(path))["main"]()
    assert len(finished) == 20
    for uid in range(20):
        length = 10 + 7 * uid
        assert finished[f"request-{uid}"] == list(range(length, length + 12))
