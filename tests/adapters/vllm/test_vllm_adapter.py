"""vLLM's adapter, inside vLLM. The programs of `inside/` run in vLLM's environments, each with its Python: what they
import is not installed here.

An environment that has not been made is skipped. `make adapters` makes both, sets HEADWAY_ADAPTERS, and the number of
random cases by HEADWAY_ADAPTER_CASES; without it few cases run.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from headway_lab.peers.environment import Environment
from headway_lab.peers.vllm_engine import VLLM_ENGINE
from headway_lab.peers.vllm_source import VLLM_SOURCE

HERE = Path(__file__).parent / "inside"
SOURCE = Path(__file__).parents[3] / "src"
ENVIRONMENTS = {"0.32.0 wheel": VLLM_ENGINE, "0.33.0 source": VLLM_SOURCE}
KINDS = ("sync, runner V1", "sync, runner V2", "async, runner V1", "async, runner V2")  # as in run_matrix.py
CASES = int(os.environ.get("HEADWAY_ADAPTER_CASES", "5"))  # random ones, of each kind
TIMEOUT = 3600  # seconds, of one program

pytestmark = pytest.mark.timeout(TIMEOUT + 60)
in_each_environment = pytest.mark.parametrize("where", ENVIRONMENTS)


def run_inside(environment: Environment, program: str, *arguments: str) -> Any:
    """What a program prints last, a line of JSON. Skips the test where the environment is missing."""
    if not environment.is_ready():
        pytest.skip(f"there is no environment of {environment.title}; `make adapters` makes it")
    done = subprocess.run(
        [str(environment.folder / "bin" / "python"), str(HERE / program), *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr[-6000:]}\n{done.stdout[-500:]}"
    return json.loads(done.stdout.splitlines()[-1])


@cache
def checks_of(where: str) -> dict[str, str | None]:
    """By check: None, or how it failed."""
    failures: dict[str, str | None] = run_inside(ENVIRONMENTS[where], "run_checks.py")
    return failures


@cache
def matrix_of(where: str) -> dict[str, Any]:
    """By kind of engine: what run_matrix.py prints."""
    numbers: dict[str, Any] = run_inside(ENVIRONMENTS[where], "run_matrix.py", "--cases", str(CASES))
    return numbers


def checks() -> list[str]:
    """The names of all checks."""
    trees = [ast.parse(file.read_text()) for file in sorted(HERE.glob("checks_*.py"))]
    names = [node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("check_")]


@in_each_environment
@pytest.mark.parametrize("check", checks())
def test_inside_vllm(where: str, check: str) -> None:
    failure = checks_of(where)[check]
    assert failure is None, failure


@in_each_environment
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_vllms_own_scheduler(
    where: str, kind: str, record_property: Callable[[str, object], None]
) -> None:
    numbers = matrix_of(where)[kind]
    assert "failed" not in numbers, f"case {numbers['failed']}: {numbers['why']}"
    stock, ours = numbers["stock"], numbers["headway"]
    counted = [f"{name} {stock[name]:,} / {ours[name]:,}" for name in ("steps", "prefix hits", "preemptions")]
    text = f"{numbers['cases']} cases, {ours['requests']:,} requests; stock / ours: {', '.join(counted)}"
    record_property("cell", (f"vLLM {where}", kind, text))
    assert stock["requests"] == ours["requests"] > CASES


@pytest.mark.skipif("HEADWAY_ADAPTERS" not in os.environ, reason="`make adapters` runs it")
def test_the_matrix_notices_every_way_to_break_the_adapter() -> None:
    failures = run_inside(VLLM_SOURCE, "run_mutations.py")
    unnoticed = [name for name, seed in failures.items() if seed is None]
    assert failures and not unnoticed
