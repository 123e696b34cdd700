"""`headway bench step` prints what it promises, and refuses what it cannot measure."""

import json

import pytest

from headway.bench.step import steady_decode
from headway.cli import main


def test_a_row_per_size_flat_with_units_in_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--running", "2,4", "--steps", "20", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["running"] for row in rows] == [2, 4]
    for row in rows:
        assert {"schedule_us", "update_us", "total_us", "reference_us", "scaled_total_us"} <= row.keys()
        assert row["total_us"] > 0 and row["reference_us"] > 0
        assert row["total_p99_us"] is None  # 20 steps have no 99th percentile


def test_the_table_names_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--running", "2", "--steps", "20"]) == 0
    assert "running" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--running", "0"], ["--running", "many"], ["--steps", "5"]])
def test_what_cannot_be_measured_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", *arguments]) == 2
    assert capsys.readouterr().err


def test_without_prefix_caching_nothing_is_published() -> None:
    assert steady_decode(4, 20, enable_prefix_caching=False).steps == 20
