"""`headway chaos` on real processes, with few faults: what it must find, and that it finds nothing else."""

from __future__ import annotations

import json

import pytest
from headway_lab.chaos import command, storm
from headway_lab.chaos.plan import Fault, FaultKind
from headway_lab.chaos.storm import Outcome

FAULTS = [
    Fault(0.2, FaultKind.ABORTS, "all"),
    Fault(0.4, FaultKind.CUT, "decode-1 to prefill-1", seconds=0.2),
    Fault(0.6, FaultKind.STOP_ENGINE, "prefill-0", seconds=0.3),
    Fault(0.8, FaultKind.PAUSE, "decode-0", seconds=0.2, mode="abort"),
    Fault(1.0, FaultKind.KILL_ENGINE, "decode-0"),
    Fault(1.2, FaultKind.KILL_API, "prefill-1"),
]


@pytest.mark.timeout(900)  # seven starts of an engine, on a machine that may be busy
async def test_a_storm_costs_no_block_no_slot_and_no_wrong_token() -> None:
    lines: list[str] = []
    outcome = await storm.run(
        FAULTS, 2.0, seed=0, tell=lambda name, line: lines.append(f"{name} | {line}"), say=lines.append, num_cases=12
    )
    assert outcome.problems == [], "\n".join(lines[-200:])
    assert outcome.faults == {str(fault.kind): 1 for fault in FAULTS}
    assert outcome.num_deaths == 1
    assert outcome.outcomes["D, alone", "complete"] and outcome.outcomes["D, by a router", "complete"]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("problem", ["leaks", "mismatches", "broken_ends", "unexcused", "not_well"])
def test_the_exit_code_is_1_for_every_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: str
) -> None:
    async def run(*_: object, **__: object) -> Outcome:
        return Outcome(**{problem: ["something is wrong"]}, outcomes={("D, alone", "complete"): 5})

    monkeypatch.setattr(storm, "run", run)
    with pytest.raises(command.typer.Exit) as exited:
        command.command(seconds=5.0, seed=1, as_json=True)
    assert exited.value.exit_code == command.PROBLEMS
    out, err = capsys.readouterr()
    rows = {row["what"]: row["count"] for row in map(json.loads, out.splitlines())}
    assert rows["D, alone: complete"] == 5 and sum(rows.values()) == 6
    assert "something is wrong" in err


def test_without_a_problem_the_exit_code_is_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(*_: object, **__: object) -> Outcome:
        return Outcome()

    monkeypatch.setattr(storm, "run", run)
    command.command(seconds=5.0)
    assert "kill -9 of an engine process" in capsys.readouterr().out
