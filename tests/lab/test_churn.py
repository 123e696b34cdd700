"""`headway bench churn` tells what a request costs, part by part, and refuses what it cannot measure."""

import pytest
from headway_lab.benches import churn
from headway_lab.schedulers.contenders import Contender
from headway_lab.schedulers.workloads import Churn

from headway.cli import main
from tests.bench.printed import rows_of

SMALL = ["bench", "churn", "--requests", "100", "--concurrent", "4", "--prompt", "20", "--output", "5"]


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(churn, "WARM_UP", 8)


def test_the_schedulers_time_per_request_is_that_of_its_parts_without_create(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*SMALL, "--json"]) == 0
    (row,) = rows_of(capsys)
    parts = [row[f"{part}_us_per_request"] for part in ("add", "schedule", "update")]
    assert row["scheduler_us_per_request"] == pytest.approx(sum(parts), abs=0.2)
    assert row["create_us_per_request"] > 0
    assert row["requests"] >= 100 and row["steps"] >= 100
    assert row["step_us"] <= row["step_p99_us"]


def test_a_peer_does_the_same(fake_peers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--peer", "vllm", "--json"]) == 0
    ours, theirs = rows_of(capsys)
    assert (ours["system"], theirs["system"]) == ("headway", "vllm")
    assert ours["requests"] == theirs["requests"] and ours["steps"] == theirs["steps"]  # here, the same scheduler
    assert theirs["times_headway_low"] <= theirs["times_headway"] <= theirs["times_headway_high"]


def test_the_ratio_is_of_the_schedulers_time_per_request() -> None:
    def taking(us: float) -> Contender:
        samples = {"create_us": [9.0], "add_us": [us], "schedule_us": [us], "update_us": [us], "ended": [2]}
        return Contender("canned", "1", lambda workload: iter([samples, samples]))

    first, second = churn.measure(Churn(2, 2, warm_up=1), [taking(1.0), taking(5.0)])
    assert (first["scheduler_us_per_request"], second["scheduler_us_per_request"]) == (1.5, 7.5)
    assert "times_headway" not in first and second["times_headway"] == 5.0


def test_a_table_and_a_picture(fake_peers: list[str], tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    file = tmp_path / "churn.svg"
    assert main([*SMALL, "--peer", "vllm", "--plot", str(file)]) == 0
    assert "× headway" in capsys.readouterr().out
    assert "vllm 9.9" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--requests", "1023"], "at least 1024 for a 99th percentile of the steps, got 1023"),
        (["--requests", "5000", "--output", "1"], "at least 25600"),
        (["--concurrent", "0"], "--concurrent"),
        (["--prompt", "0"], "from 1 to 8192, got 0"),
        (["--output", "8193"], "from 1 to 8192, got 8193"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "churn", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and len(err.splitlines()) == 1


def test_the_fewest_requests_that_are_allowed_give_enough_steps(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--requests", "320", "--concurrent", "32", "--prompt", "16", "--output", "10", "--json"]
    assert main(["bench", "churn", *arguments]) == 0  # all in step: 32 begin and end together
    (row,) = rows_of(capsys)
    assert row["steps"] >= 100 and row["step_p99_us"] is not None
