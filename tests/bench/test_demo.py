"""`make demo`, whole: a real server, a real model, the official client."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments], capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.parametrize("scheduler", ["v0", "v1", "v2"])
def test_the_demo_ends_well_under_every_scheduler(scheduler):
    done = run("--per-task", "3", "--", "--scheduler", scheduler)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All is well." in done.stdout
    assert "31 of 31 answers complete" in done.stdout
    found, asked = map(int, re.search(r"prefix cache: (\d+) of (\d+) prompt tokens found", done.stdout).groups())
    assert 0 < found < asked
    assert re.search(r"abandoned request: stopped after \d+ of \d+ tokens", done.stdout)


def test_a_server_that_cannot_start_is_told_and_not_waited_for():
    done = run("--", "--block-size", "3")
    assert done.returncode == 1
    assert "block_size must be a power of two, got 3" in done.stdout
