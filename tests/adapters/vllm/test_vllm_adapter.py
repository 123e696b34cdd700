"""vLLM's adapter, inside vLLM. The programs of `inside/` run in the environments of vLLM, each with its Python; what they
import is not installed here.

An environment that has not been made is skipped. `make adapters` makes both, and runs HEADWAY_ADAPTER_CASES cases.
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
CASES = int(os.environ.get("HEADWAY_ADAPTER_CASES", "10"))  # random ones, of each kind of engine
TIMEOUT = 1800  # seconds, of one program

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


def functions(file: str, prefix: str) -> list[str]:
    """The functions of a program whose names begin so."""
    tree = ast.parse((HERE / file).read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith(prefix)]


CHECKS = [name for file in sorted(HERE.glob("checks_*.py")) for name in functions(file.name, "check_")]


@in_each_environment
@pytest.mark.parametrize("check", CHECKS)
def test_inside_vllm(where: str, check: str) -> None:
    failure = checks_of(where)[check]
    assert failure is None, failure


@in_each_environment
@pytest.mark.parametrize("runner", (1, 2))
@pytest.mark.parametrize("asynchronous", (False, True), ids=("sync", "async"))
def test_answers_are_those_of_vllms_own_scheduler(
    where: str, asynchronous: bool, runner: int, record_property: Callable[..., None]
) -> None:
    mode = "async" if asynchronous else "sync"
    record_property("cell", (f"imitated worker, vLLM {where}, runner V{runner}", mode, f"{CASES} cases equal"))
    options = ["--cases", str(CASES), "--runner", str(runner)] + ["--asynchronous"] * asynchronous
    numbers = run_inside(ENVIRONMENTS[where], "run_matrix.py", *options)
    print(json.dumps(numbers))  # hits and preemptions are reported, not compared
    assert numbers["cases"] == CASES
    assert numbers["stock"]["requests"] == numbers["headway"]["requests"] > CASES


def test_the_matrix_notices_every_way_to_break_the_adapter() -> None:
    failures = run_inside(VLLM_SOURCE, "run_mutations.py")
    unnoticed = [name for name, seed in failures.items() if seed is None]
    assert failures and not unnoticed
