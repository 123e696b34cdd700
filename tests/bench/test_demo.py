"""`make demo`: what it calls well, and then the whole of it with a real server, a real model, the official client."""

import io
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(DEMO)))


def verdict(demo, *, right=100, wrong=0, failed=0, running=0, spent=30, error=None) -> tuple[bool, str]:
    """What the demo says of so many answers of 5 tokens, and of an abandoned request that cost `spent`."""
    exchanges = [
        *(demo.Exchange("sort", "q", "a", text="a", num_tokens=5, first_s=0.1, is_done=True) for _ in range(right)),
        *(demo.Exchange("sort", "q", "a", text="b", num_tokens=5, first_s=0.1, is_done=True) for _ in range(wrong)),
        *(demo.Exchange("sort", "q", "a", error="gone") for _ in range(failed)),
    ]
    numbers = {
        "num_requests_running": running,
        "num_requests_waiting": 0,
        "generation_tokens_total": 5 * (right + wrong) + spent,
        "prefix_cache_hits_total": 30,
        "prefix_cache_queries_total": 120,
    }
    output = io.StringIO()
    abandoned = demo.Abandoned(max_tokens=400, pieces=8, error=error)
    went_well = demo.report(exchanges, abandoned, numbers, 2.0, Console(file=output, width=100))
    return went_well, output.getvalue()


def test_right_answers_and_an_abandoned_request_that_stopped_are_well(demo):
    went_well, text = verdict(demo)
    assert went_well
    assert "100 of 100 right (100%), 0 failed, in 2.0 s" in text
    assert "output: 500 tokens, 250 tokens/s" in text
    assert "prefix cache: 30 of 120 prompt tokens found (25%)" in text
    assert "abandoned request: stopped after 30 of 400 tokens" in text


@pytest.mark.parametrize(
    ("came_of_it", "well"),
    [
        ({"right": 95, "wrong": 5}, True),
        ({"right": 94, "wrong": 6}, False),
        ({"right": 99, "failed": 1}, False),
        ({"running": 1}, False),
        ({"spent": 400}, False),
        ({"error": "APIConnectionError"}, False),
    ],
)
def test_it_is_not_well_with_wrong_answers_failures_or_a_request_that_runs_on(demo, came_of_it, well):
    assert verdict(demo, **came_of_it)[0] is well


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


def test_without_the_official_client_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(SystemExit, match=r"pip install 'headway\[examples\]'$"):
        runpy.run_path(str(DEMO))


def test_a_server_that_cannot_start_is_told_and_not_waited_for():
    done = run("--", "--block-size", "3")
    assert done.returncode == 1
    assert "block_size must be a power of two, got 3" in done.stdout
