"""`headway bench query` asks real managers while steps run, and refuses what it cannot measure."""

import json
from pathlib import Path

import pytest
from headway_lab.benches import query

from headway.cli import main


@pytest.mark.parametrize("scheduler", query.SCHEDULERS)
def test_every_query_is_answered_while_steps_run(scheduler: str) -> None:
    row = query.ask_while_steps_run(scheduler, step_ms=2.0, running=4, queries=100, pause_ms=2.0)  # type: ignore[arg-type]
    assert (row.scheduler, row.running, row.queries) == (scheduler, 4, 100)
    assert 0 < row.p50_ms <= row.p99_ms <= row.max_ms


@pytest.mark.parametrize("scheduler", query.SCHEDULERS)
def test_as_many_end_as_were_to_end(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "REPEATS", 2)
    row = query.finish_many(scheduler, running=16, finishes=8)  # type: ignore[arg-type]
    assert (row.finishes, row.repeats) == (8, 2)
    assert row.call_ms > 0 and row.worst_ms >= row.held_up_ms


def test_rows_are_flat_with_units_in_the_keys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "REPEATS", 1)
    monkeypatch.setattr(query, "RUNNING", 64)
    monkeypatch.setattr(query, "FINISHES", (4,))
    arguments = ["bench", "query", "--step-ms", "1", "--running", "2", "--queries", "100", "--pause-ms", "1,0"]
    assert main([*arguments, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["scheduler"] for row in rows] == ["v1", "v2"] * 3
    assert {"p50_ms", "p99_ms", "step_ms"} <= rows[0].keys() and {"held_up_ms", "finishes"} <= rows[4].keys()


def test_as_a_table_and_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    monkeypatch.setattr(query, "REPEATS", 1)
    monkeypatch.setattr(query, "RUNNING", 64)
    monkeypatch.setattr(query, "FINISHES", (64,))
    file = tmp_path / "query.svg"
    arguments = ["--step-ms", "1", "--running", "2", "--queries", "100", "--pause-ms", "0", "--plot", str(file)]
    assert main(["bench", "query", *arguments]) == 0
    out = capsys.readouterr().out
    assert "p99" in out and "loop held up" in out and "115" in out
    assert "v2, asked every 0 ms" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--queries", "99"], "at least 100"),
        (["--step-ms", "0"], "above 0"),
        (["--step-ms", "nan"], "above 0"),
        (["--running", "0"], "at least 1"),
        (["--pause-ms", "1,,2"], "numbers in [0, 1000]"),
        (["--plot", "query.txt"], "must end in .png or .svg"),
        (["--pause-ms", "-1"], "numbers in [0, 1000]"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "query", *arguments]) == 2
    assert says in capsys.readouterr().err
