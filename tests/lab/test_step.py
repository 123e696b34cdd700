"""`headway bench step` prints what it promises, and refuses what it cannot measure."""

import pytest
from headway_lab.benches import step
from headway_lab.schedulers.contenders import HEADWAY
from headway_lab.schedulers.workloads import SteadyDecode

from headway.cli import main
from tests.bench.printed import rows_of


def test_a_row_per_size_flat_with_units_in_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--running", "2,4", "--steps", "100", "--json"]) == 0
    rows = rows_of(capsys)
    assert [(row["system"], row["running"], row["steps"]) for row in rows] == [("headway", 2, 100), ("headway", 4, 100)]
    for row in rows:
        assert {"schedule_us", "update_us", "total_us", "total_p99_us", "reference_us"} <= row.keys()
        assert 0 < row["total_us"] <= row["total_p99_us"] and row["reference_us"] > 0
        assert "times_headway" not in row


def test_what_one_more_running_request_costs_is_told_from_the_second_size_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "step", "--running", "2,4", "--steps", "100", "--json"]) == 0
    few, more = rows_of(capsys)
    assert few["us_per_extra_running"] is None
    assert more["us_per_extra_running"] == pytest.approx((more["total_us"] - few["total_us"]) / 2, abs=1e-3)


def test_waiting_and_features_stand_beside_the_plain_step(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--running", "2", "--steps", "100", "--waiting", "50", "--features", "--json"]
    assert main(["bench", "step", *arguments]) == 0
    plain, waiting, features = rows_of(capsys)
    assert (plain["waiting"], waiting["waiting"], features["waiting"]) == (0, 50, 50)
    assert (plain["features"], waiting["features"], features["features"]) == (False, False, True)
    assert "times_plain" not in plain
    assert waiting["times_plain"] == pytest.approx(waiting["total_us"] / plain["total_us"], abs=0.02)


def test_steps_after_a_sleep_stand_beside_those_without(capsys: pytest.CaptureFixture[str]) -> None:
    slept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headway_lab.schedulers.workloads.time.sleep", slept.append)
        assert main(["bench", "step", "--running", "2,4", "--steps", "100", "--pause-ms", "3", "--json"]) == 0
    rows = rows_of(capsys)
    assert [(row["running"], row["pause_ms"]) for row in rows] == [(2, 0), (2, 3), (4, 0), (4, 3)]
    assert slept == [0.003] * 200
    assert "us_per_extra_running" not in rows[3]
    assert rows[2]["us_per_extra_running"] == pytest.approx((rows[2]["total_us"] - rows[0]["total_us"]) / 2, abs=1e-3)


def test_peers_run_the_same_beside_us(fake_peers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--running", "2,4", "--steps", "100", "--peer", "vllm", "--peer", "transformers", "--json"]
    assert main(["bench", "step", *arguments]) == 0
    rows = rows_of(capsys)
    assert fake_peers == ["vllm", "transformers"]
    assert [row["system"] for row in rows] == ["headway", "vllm", "transformers"] * 2
    for row in rows:
        if row["system"] != "headway":
            assert row["version"] == "9.9" and row["steps"] == 100
            assert 0 < row["times_headway_low"] <= row["times_headway_high"] and row["times_headway"] > 0


def test_through_the_adapter_each_kind_of_steps_is_compared_on_its_own(
    fake_peers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["bench", "step", "--running", "8", "--steps", "100", "--peer", "vllm", "--through-adapter", "--json"])
        == 0
    )
    rows = rows_of(capsys)
    assert [row["system"] for row in rows] == [
        *("headway under vllm", "vllm", "headway under vllm, async", "vllm, async"),
    ]
    assert ["times_headway" in row for row in rows] == [False, True] * 2


def test_all_are_run_in_turn() -> None:
    log = []

    def logged(name: str) -> step.Contender:
        def run(workload):
            for samples in HEADWAY.run(workload):
                log.append((name, workload.waiting))
                yield samples

        return step.Contender(name, "1", run)

    plain = SteadyDecode(2, 20, 2)
    step.measure([plain, SteadyDecode(2, 20, 2, waiting=3)], [logged("headway"), logged("peer")])
    assert log == [("headway", 0), ("peer", 0), ("headway", 3), ("peer", 3)] * 2


def test_the_table_names_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--running", "2", "--steps", "100"]) == 0
    out = capsys.readouterr().out
    assert "running" in out and "schedule" in out and "× headway" not in out


def test_it_draws(fake_peers: list[str], tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    file = tmp_path / "step.svg"
    arguments = ["--running", "2,4", "--steps", "100", "--waiting", "5", "--peer", "vllm", "--plot", str(file)]
    assert main(["bench", "step", *arguments]) == 0
    assert "vllm 9.9, 5 waiting" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--running", "0"], "whole numbers in [1, "),
        (["--running", "many"], "whole numbers in [1, "),
        (["--steps", "99"], "at least 100 for a 99th percentile"),
        (["--waiting", "-1"], "at least 0"),
        (["--pause-ms", "-1"], "must be in [0, 1000]"),
        (["--features", "--peer", "transformers"], "measure it without"),
        (["--peer", "stranger"], "stranger"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "step", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err


def test_without_prefix_caching_nothing_is_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--running", "2", "--steps", "100", "--no-prefix-caching", "--json"]) == 0
    assert rows_of(capsys)[0]["prefix_caching"] is False
