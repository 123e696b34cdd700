"""Headway's scheduler in FastDeploy's real engine service, worker queue and token processor, with a worker of ours.

FastDeploy runs in an environment of its own, and in namespaces where it can harm nothing: see `isolated`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from headway_lab.peers.fastdeploy import FASTDEPLOY, source

from tests.adapters.fastdeploy import isolated
from tests.adapters.peers import needs, needs_whole

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
NOT_PASSED = HERE / "their_tests.toml"
NUM_THEIRS, FEWEST_PASSED = 123, 115
NUM_SEEDS = 400

pytestmark = [
    needs(FASTDEPLOY),
    pytest.mark.skipif(not isolated.is_possible(), reason="this machine lets us make no namespaces: see `isolated`"),
    pytest.mark.timeout(900),
]


Cell = Callable[[str, str], None]


@pytest.fixture
def cell(record_property: Callable[[str, object], None]) -> Cell:
    """Says what a test found, for the table of `make adapters`."""
    return lambda row, text: record_property("cell", (row, FASTDEPLOY.title, text))


def run(module: str, *arguments: str, folder: Path, **variables: str) -> str:
    """What a module prints that runs in FastDeploy's environment."""
    theirs = source() / "tests"
    done = subprocess.run(
        [FASTDEPLOY.python(), "-m", "tests.adapters.fastdeploy.isolated", module, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT, theirs))),
            "FD_LOG_DIR": str(folder),
            "OMP_NUM_THREADS": "1",
            **variables,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=800,
    )
    return done.stdout + done.stderr[-4000:]


def result(module: str, *arguments: str, folder: Path) -> dict[str, Any]:
    """The result of one of our programs."""
    printed = run(f"tests.adapters.fastdeploy.{module}", *arguments, folder=folder)
    found = re.search(r"^RESULT (.*)$", printed, re.MULTILINE)
    assert found is not None, printed[-4000:]
    answer: dict[str, Any] = json.loads(found[1])
    return answer


def nothing_is_left(numbers: dict[str, Any], num_slots: int = 8) -> None:
    """All slots and blocks are free, and the worker found all in its place."""
    assert numbers["faults"] == []
    assert (numbers["num_requests_left"], numbers["num_slots_used"], numbers["num_blocks_used"]) == (0, 0, 0), numbers
    assert numbers["num_free_slots"] == num_slots


def all_is_right(came: dict[str, Any], num_requests: int) -> None:
    """Every request has ended once, and every token is right."""
    assert came["num_ended"] == num_requests and came["ended_twice"] == [] and came["errors_of_others"] == {}, came
    assert came["wrong"] == [] and came["num_exact"] == num_requests, came


# -- mixed -------------------------------------------------------------------------------------------------------

SHORT_OF_BLOCKS = {"num_blocks": 26, "most_prompt": 40, "most_outputs": 150, "num_requests": 30}
STARVED = {"num_blocks": 26, "num_slots": 16, "most_prompt": 40, "most_outputs": 200}
MIXED: dict[str, dict[str, Any]] = {
    "plain": {"num_blocks": 200},
    "preempted": SHORT_OF_BLOCKS,
    "preempted more": STARVED,
    "a fifth aborted": {"num_blocks": 40, "aborts": 0.2, "prefix_caching": True},
    "preempted and aborted": {**SHORT_OF_BLOCKS, "aborts": 0.2, "prefix_caching": True},
    "paused": {"num_blocks": 40, "pause": True, "prefix_caching": True},
    "small steps": {"num_blocks": 60, "budget": 48, "prefix_caching": True, "aborts": 0.1},
}


@needs_whole
@pytest.mark.parametrize("case", MIXED)
def test_a_mixed_engine_answers_each_request_once_and_exactly(case: str, tmp_path: Path, cell: Cell) -> None:
    plan = {"seconds": 200, **MIXED[case]}
    came = result("mixed_run", json.dumps(plan), folder=tmp_path)
    cell(f"FastDeploy, mixed: {case}", f"{came['num_exact']} exact")
    all_is_right(came, plan.get("num_requests", 60))
    nothing_is_left(came, plan.get("num_slots", 8))
    assert came["cut_without_a_word"] == []
    if "preempted" in case:
        assert came["num_given_up"] > came["num_aborted"], "none was preempted"


@needs_whole
def test_fastdeploys_own_manager_answers_the_same_requests_where_blocks_are_plenty(tmp_path: Path) -> None:
    all_is_right(result("mixed_run", json.dumps({"manager": "v1", **MIXED["plain"]}), folder=tmp_path), 60)


@needs_whole
def test_fastdeploys_own_manager_hangs_where_blocks_are_short(tmp_path: Path) -> None:
    """Nothing sets RUNNING_DECODE where tokens come by ZeroMQ, and only requests of that status can be preempted. When
    this fails, FastDeploy has been repaired: say so in docs/fastdeploy.md."""
    came = result("mixed_run", json.dumps({"manager": "v1", "seconds": 60, **STARVED}), folder=tmp_path)
    assert came["num_ended"] < 60 and came["num_given_up"] == 0


# -- P and D -----------------------------------------------------------------------------------------------------

PD: dict[str, dict[str, Any]] = {
    "plain": {},
    "a fifth aborted": {"aborts": 0.2},
    "shared prefixes": {"prefix_caching": True, "aborts": 0.1, "seed": 3},
    "preempted on D": {"decode_blocks": 26, "most_prompt": 40, "most_outputs": 150, "num_requests": 30},
}


@needs_whole
@pytest.mark.parametrize("case", PD)
def test_p_and_d_answer_each_request_once_and_exactly(case: str, tmp_path: Path, cell: Cell) -> None:
    plan = {"seconds": 200, **PD[case]}
    came = result("pd_run", json.dumps(plan), folder=tmp_path)
    cell(f"FastDeploy, P and D: {case}", f"{came['num_exact']} exact")
    all_is_right(came, plan.get("num_requests", 40))
    assert came["messager_faults"] == []
    nothing_is_left(came["prefill"])
    nothing_is_left(came["decode"])
    if case == "preempted on D":
        assert came["num_preempted"] > 0, "FastDeploy ends requests that D has no blocks for"


# -- interleavings -----------------------------------------------------------------------------------------------


@needs_whole
def test_in_any_order_of_turns_each_request_is_answered_once_and_exactly(tmp_path: Path, cell: Cell) -> None:
    came = result("interleaved_run", "0", str(NUM_SEEDS), folder=tmp_path)
    cell("FastDeploy, any order of turns", f"{NUM_SEEDS - len(came['failed'])} seeds exact")
    assert came["failed"] == {}, next(iter(came["failed"].values()))
    assert came["preempted"] > NUM_SEEDS / 8 and came["aborted"] > NUM_SEEDS


# -- the launcher ------------------------------------------------------------------------------------------------


@needs_whole
@pytest.mark.parametrize("switch", ["1", "0"])
def test_the_launcher_starts_fastdeploys_server_with_the_scheduler_that_the_switch_names(
    switch: str, tmp_path: Path
) -> None:
    printed = run("headway.adapters.fastdeploy", "--help", folder=tmp_path, ENABLE_V2_KVCACHE_SCHEDULER=switch)
    assert "usage: api_server.py" in printed
    assert ("FastDeploy runs with Headway's scheduler" in printed) is (switch == "1")
    assert ("FastDeploy runs with its own scheduler" in printed) is (switch == "0")


@needs_whole
def test_an_engine_that_fastdeploy_sets_to_version_0_is_refused_and_not_run_by_fastdeploys_own_scheduler(
    tmp_path: Path,
) -> None:
    found = result("version_0_run", folder=tmp_path)
    assert found["scheduler"] == "" and "ENABLE_V1_KVCACHE_SCHEDULER=0" in found["refusal"]


# -- FastDeploy's tests ------------------------------------------------------------------------------------------


@needs_whole
def test_fastdeploys_own_tests_of_its_engine_pass_but_for_a_list_with_reasons(tmp_path: Path, cell: Cell) -> None:
    listed = tomllib.loads(NOT_PASSED.read_text())["not_passed"]
    printed = run(
        *(
            "pytest",
            "-p",
            "tests.adapters.fastdeploy.their_tests",
            "-q",
            "-p",
            "no:cacheprovider",
            "-rA",
            "-o",
            "addopts=",
        ),
        str(source() / "tests" / "engine" / "test_common_engine.py"),
        folder=tmp_path,
    )
    outcomes = {
        test: outcome for outcome, test in re.findall(r"^(PASSED|FAILED|ERROR) \S+::(\w+)", printed, re.MULTILINE)
    }
    cell("FastDeploy, its own tests of its engine", f"{list(outcomes.values()).count('PASSED')} of {NUM_THEIRS} pass")
    assert len(outcomes) == NUM_THEIRS, printed[-4000:]
    assert {test for test, outcome in outcomes.items() if outcome != "PASSED"} == set(listed)
    assert NUM_THEIRS - len(listed) >= FEWEST_PASSED
