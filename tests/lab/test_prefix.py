"""`headway bench prefix` times a prompt from its tokens to its step, from a list and packed, cold and warm."""

import pytest

from headway.cli import main
from tests.bench.printed import rows_of

SMALL = ["bench", "prefix", "--tokens", "256", "--repeats", "5"]


def test_a_list_and_packed_each_cold_and_warm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    rows = rows_of(capsys)
    assert [(row["system"], row["form"]) for row in rows] == [("headway", "list"), ("headway", "packed int32")]
    for row in rows:
        assert (row["prompt_tokens"], row["repeats"]) == (256, 5)
        for state in ("cold", "warm"):
            assert row[f"{state}_us"] > max(row[f"{state}_create_us"], row[f"{state}_schedule_us"]) > 0


def test_a_peer_is_compared_with_both_forms(fake_peers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--peer", "vllm", "--json"]) == 0
    *ours, theirs = rows_of(capsys)
    assert (len(ours), theirs["system"], theirs["form"]) == (2, "vllm", "list")
    for state in ("cold", "warm"):
        for row, form in zip(ours, ("list", "packed"), strict=True):
            ratio = f"{state}_times_headway_{form}"
            assert theirs[ratio] == pytest.approx(theirs[f"{state}_us"] / row[f"{state}_us"], rel=0.02)
            assert theirs[f"{ratio}_low"] <= theirs[f"{ratio}_high"]


def test_a_table_and_a_picture(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    file = tmp_path / "prefix.svg"
    assert main([*SMALL, "--plot", str(file)]) == 0
    assert "packed int32" in capsys.readouterr().out
    assert "headway, packed int32, warm" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--repeats", "4"], "at least 5, got 4"),
        (["--tokens", "127"], "from 128 to 65536, got 127"),
        (["--tokens", "65537"], "from 128 to 65536, got 65537"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "prefix", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and len(err.splitlines()) == 1
