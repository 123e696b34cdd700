"""`headway bench preempt` runs all to the last token, under each reserve rule of ours."""

import pytest

from headway.cli import main
from tests.bench.printed import rows_of

SIZES = ["--requests", "12", "--prompt", "16", "--output", "100", "--concurrent", "12", "--num-blocks", "33"]
SMALL = ["bench", "preempt", *SIZES, "--runs", "2"]


def test_a_row_for_each_reserve_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    rows = rows_of(capsys)
    assert [row["system"] for row in rows] == ["headway", "headway, reserve blocks", "headway, reserve none"]
    for row in rows:
        assert row["runs"] == 2 and row["steps"] >= 100
        assert row["times_minimal_tokens"] == pytest.approx(row["computed_tokens"] / (12 * 115), abs=1e-3)
        assert row["total_us"] <= row["total_p99_us"]
    careful, _, none = rows
    assert 0 <= careful["preemptions"] < none["preemptions"]
    assert careful["times_minimal_tokens"] < none["times_minimal_tokens"]
    assert careful["rows"] < none["rows"]


def test_a_peer_is_compared_with_the_default_rule_and_with_none(
    fake_peers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--peer", "vllm", "--json"]) == 0
    default, _, none, theirs = rows_of(capsys)
    assert theirs["system"] == "vllm"
    for name, ours in (("headway", default), ("no_reserve", none)):
        assert theirs[f"times_{name}"] == pytest.approx(theirs["total_us"] / ours["total_us"], rel=0.02)
        assert theirs[f"run_times_{name}"] == pytest.approx(theirs["run_ms"] / ours["run_ms"], rel=0.1)
        assert theirs[f"times_{name}_low"] <= theirs[f"times_{name}_high"]


def test_through_the_adapter_there_is_our_default_rule_alone(
    fake_peers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--peer", "vllm", "--through-adapter", "--json"]) == 0
    ours, theirs, ours_async, theirs_async = rows_of(capsys)
    assert ours["system"] == "headway under vllm" and ours_async["system"] == "headway under vllm, async"
    for row in (theirs, theirs_async):
        assert "times_headway" in row and "times_no_reserve" not in row


def test_a_table_and_a_picture(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    file = tmp_path / "preempt.svg"
    assert main([*SMALL, "--plot", str(file)]) == 0
    assert "headway, reserve none" in capsys.readouterr().out
    assert "× the tokens" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--requests", "0"], "at least 1, got 0"),
        (["--runs", "0"], "at least 1, got 0"),
        (["--output", "99"], "too few steps for a 99th percentile, got 99"),
        (["--num-blocks", "64"], "above 64, which one request needs, got 64"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "preempt", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and len(err.splitlines()) == 1
