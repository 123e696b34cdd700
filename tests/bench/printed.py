"""What a benchmark has printed."""

import json

import pytest


def rows_of(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    """With --json."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
