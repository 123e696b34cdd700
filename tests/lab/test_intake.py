"""`headway bench intake` hands in work while the loop steps, and refuses what it cannot measure."""

import math

import pytest
from headway_lab.benches import intake
from headway_lab.benches.intake import ABORT, ADD, ADD_LIST, CACHE, FINISH, KINDS, REFUSED, Latency, Load, Sample

from headway.cli import main
from tests.bench.printed import rows_of

SMALL = ["bench", "intake", "--producers", "2", "--running", "8", "--step-ms", "1"]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MIN_CALLS", 100)
    monkeypatch.setattr(intake, "MIN_S", 0.4)


@pytest.mark.parametrize("scheduler", intake.SCHEDULERS)
def test_every_kind_of_call_is_timed_inside_and_from_its_arrival(scheduler) -> None:
    sample = intake.run(scheduler, Load(producers=2, running=8, rate=500.0, seconds=0.3, step_s=0.002))
    assert {ADD, ADD_LIST, FINISH, ABORT, CACHE} <= sample.latencies.keys()
    assert all(0 < one.inside <= one.from_arrival for ones in sample.latencies.values() for one in ones)
    assert len(sample.turns) >= intake.MIN_STEPS // intake.ROUNDS


def test_rows_of_calls_and_of_steps_the_unloaded_ones_first(brief: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--rate", "2000,inf", "--json"]) == 0
    rows = rows_of(capsys)
    calls = [row for row in rows if "call" in row]
    steps = [row for row in rows if "call" not in row]
    assert {row["call"] for row in calls} - {REFUSED} == set(KINDS)
    assert {row["scheduler"] for row in calls} == {"v1", "v2"}
    assert [(row["scheduler"], row["calls_per_s_wanted"]) for row in steps] == [
        *[("v1", 0.0), ("v2", 0.0)],
        *[("v1", 2000.0), ("v2", 2000.0)],
        *[("v1", None), ("v2", None)],
    ]
    assert steps[0]["calls_per_s"] == 0 and steps[0]["turn_p99_times_unloaded"] == 1.0
    for row in steps:
        assert row["steps"] >= intake.MIN_STEPS and row["turn_p99_times_unloaded"] is not None


def canned(inside: float, turn: float) -> Sample:
    return Sample({FINISH: [Latency(inside, 2 * inside)] * 1000}, [turn] * 100, 1.0)


def test_ratios_are_of_99th_percentiles() -> None:
    load = Load(1, 1, math.inf, 1.0, 0.01)
    first, second = intake.call_rows(load, {"v1": canned(5e-3, 1e-3), "v2": canned(5e-5, 1e-3)})
    assert "v1_p99_times" not in first and second["v1_p99_times"] == 100.0
    assert second["inside_p99.9_us"] == 50.0 and second["from_arrival_max_us"] == 100.0
    row = intake.step_row("v2", load, canned(1.0, 3e-3), canned(1.0, 1e-3))
    assert (row["turn_p99_ms"], row["turn_p99_times_unloaded"], row["calls_per_s"]) == (3.0, 3.0, 1000.0)


def test_too_few_calls_for_a_percentile_give_none() -> None:
    (row,) = intake.call_rows(
        Load(1, 1, 1.0, 1.0, 0.01), {"v2": Sample({REFUSED: [Latency(1e-6, 1e-6)] * 150}, [], 1.0)}
    )
    assert row["inside_p99_us"] == 1.0 and row["inside_p99.9_us"] is None


def test_tables_and_a_picture(brief: None, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "intake.svg"
    assert main([*SMALL, "--rate", "2000", "--plot", str(file)]) == 0
    out = capsys.readouterr().out
    assert "finish" in out and "p99 / unloaded" in out and file.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rate", "500", "--seconds", "5"], "at least 13.2 seconds at 500 calls/s, got 5"),
        (["--rate", "inf", "--seconds", "0.1"], "a 99th 100 steps"),
        (["--rate", "0"], "numbers in [1, inf]"),
        (["--rate", "nan"], "numbers in [1, inf]"),
        (["--producers", "0"], "whole numbers in [1, 256]"),
        (["--producers", "1.5"], "whole numbers"),
        (["--running", "20000"], "whole numbers in [1, 16384]"),
        (["--step-ms", "0"], "[0.1, 1000]"),
        (["--plot", "x.gif"], ".png or .svg"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "intake", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and len(err.splitlines()) == 1
