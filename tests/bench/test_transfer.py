"""`headway bench transfer` moves KV blocks from another process, beside memcpy and plain sockets."""

import pytest

from headway.bench import transfer
from headway.cli import main
from headway.transfer.nixl import is_installed
from tests.bench.printed import rows_of

SMALL = ["bench", "transfer", "--mib", "1", "--rounds", "3", "--streams", "2"]


def test_every_way_is_measured_beside_its_yardstick(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    rows = rows_of(capfd)
    ways = [("shared-memory", "memcpy"), ("tcp", "plain sockets"), *([("nixl", "memcpy")] if is_installed() else [])]
    assert [(row["way"], row.get("yardstick")) for row in rows] == [
        ("memcpy", None),
        ("plain sockets", None),
        *(way for way in ways for _ in ("consecutive", "scattered")),
    ]
    for row in rows:
        assert 0 < row["gb_per_s_low"] <= row["gb_per_s"] <= row["gb_per_s_high"]
        assert row["mib"] == 1 and row["rounds"] == 3
        assert ("percent_of_yardstick" in row) is ("yardstick" in row)


def test_a_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    assert "% of its yardstick" in capfd.readouterr().out


def test_bytes_that_are_not_those_of_p_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    true_check = transfer.Bench.check

    def check(bench: transfer.Bench, *blocks: object) -> None:
        bench._memory.parts[0][:, 0] ^= 1
        true_check(bench, *blocks)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer.Bench, "check", check)
    with pytest.raises(RuntimeError, match="other bytes have come"):
        list(transfer.measure(4, 2, 3))
