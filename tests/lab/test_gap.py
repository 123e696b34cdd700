"""`headway bench gap` times what the device waits between steps, and refuses what it cannot measure."""

import pytest
from headway_lab.benches import gap
from headway_lab.benches.gap import CONTENDERS, MIN_STEPS, ROUNDS, Sample, Traffic
from headway_lab.rigs.busy_engine import BusyEngine

from headway.cli import main
from headway.executor.simulated import StepTimes
from tests.bench.printed import rows_of

SMALL = ["bench", "gap", "--step-ms", "2", "--running", "8", "--threads", "2", "--request-rate", "200"]


@pytest.mark.parametrize("contender", CONTENDERS)
def test_requests_come_and_go_and_the_tokens_of_every_step_leave(contender) -> None:
    sample = gap.run(contender, Traffic(running=8, step_s=0.002, rate=200.0, threads=2, seconds=0.3))
    assert len(sample.gaps) >= MIN_STEPS // ROUNDS and min(sample.gaps) >= 0
    assert sample.idle == pytest.approx(sum(sample.gaps)) and 0 <= sample.idle < sample.whole


def test_a_gap_is_from_the_end_of_a_step_to_the_next_and_a_turn_to_the_launch_it_makes_room_for() -> None:
    steps = [StepTimes(1, 0.0, 0.0, 1.0), StepTimes(2, 0.5, 1.0, 2.0), StepTimes(3, 2.25, 2.25, 3.0)]
    ahead = BusyEngine("v2", 4, 0.001, prompt_tokens=4, max_tokens=4, async_scheduling=True)
    alone = BusyEngine("v2", 4, 0.001, prompt_tokens=4, max_tokens=4, async_scheduling=False)
    assert ahead.gaps(steps) == alone.gaps(steps) == [0.0, 0.25]
    assert ahead.turns(steps) == [1.25]
    assert alone.turns(steps) == [-0.5, 0.25]


def test_answers_are_as_long_as_keeps_so_many_running() -> None:
    assert Traffic(1024, 0.010, 500.0, 16, 1.0).max_tokens == 205
    assert Traffic(1, 1.0, 500.0, 16, 1.0).max_tokens == 1


def test_a_row_for_each_contender(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap, "ROUNDS", 1)
    assert main([*SMALL, "--seconds", "1", "--json"]) == 0
    rows = rows_of(capsys)
    assert [(row["scheduler"], row["async_scheduling"]) for row in rows] == [tuple(one) for one in CONTENDERS]
    for row in rows:
        assert row["steps"] >= 100 and row["gap_p99_us"] is not None
        assert 0 <= row["idle_percent"] < 100 and row["gap_p50_us"] <= row["gap_p99_us"] <= row["gap_max_us"]


def test_rounds_are_pooled_into_a_table_and_a_picture(
    tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = iter([Sample([1e-4] * 60, [1e-3] * 60, idle, 0.5, [8]) for idle in (0.01, 0.01, 0.01, 0.01, 0, 0, 0, 0)])
    monkeypatch.setattr(gap, "run", lambda contender, traffic: next(samples))
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    file = tmp_path / "gap.svg"
    assert main([*SMALL, "--seconds", "1", "--plot", str(file)]) == 0
    out = capsys.readouterr().out
    assert "idle, %" in out and "1.00" in out and "1,000" in out  # 0.01 of 1 s; turns of 1 ms
    assert "v2, overlapped, 8 running" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seconds", "1", "--step-ms", "10"], "at least 1.5 seconds, got 1"),
        (["--step-ms", "0"], "numbers in [0.1, 1000]"),
        (["--step-ms", "2,,3"], "numbers in [0.1, 1000]"),
        (["--running", "0"], "whole numbers in [1, 16384]"),
        (["--running", "2.5"], "whole numbers in [1, 16384]"),
        (["--request-rate", "0"], "(0, 100000]"),
        (["--threads", "0"], "[1, 256]"),
        (["--running", "16384", "--step-ms", "0.1"], "max_model_len"),
        (["--plot", "x.gif"], ".png or .svg"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "gap", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and len(err.splitlines()) == 1
