"""`headway bench soak` sends very many short requests to an engine process, and weighs it."""

import asyncio

import pytest

from headway.bench import soak
from headway.bench.soak import Device, Resident, Soak
from headway.cli import main
from tests.bench.printed import rows_of


def test_growth_is_from_the_first_warm_tenth_to_the_last() -> None:
    run = Soak(Device.SIMULATED, 1_000)
    sizes = {
        range(0, 300, 10): 10,
        range(300, 401, 10): 2_000,
        range(410, 900, 10): 9_999,
        range(900, 1_001, 10): 2_020,
    }
    run.samples = [Resident(done, size * 2**10, 2**20) for span, size in sizes.items() for done in span]
    row = run.row()
    assert row["engine_growth_percent"] == pytest.approx(1.0)
    assert row["engine_bytes_per_request"] == pytest.approx(20 * 2**10 / 600, abs=0.1)
    assert row["client_growth_percent"] == row["client_bytes_per_request"] == 0


def test_every_request_ends_and_the_engine_process_is_weighed() -> None:
    weighed = set()

    def weigh(pid: int) -> int:
        weighed.add(pid)
        return soak.resident_bytes(pid)

    run = Soak(Device.SIMULATED, 1_000, weigh=weigh)
    asyncio.run(run.run())
    assert len(weighed) == 2
    assert [sample.requests for sample in run.samples] == list(range(0, 1_001, 5))
    assert all(sample.engine > 2**20 for sample in run.samples)


@pytest.mark.parametrize(
    ("warm", "end", "code"), [(600, 605, 0), (600, 607, 1), (38, 42, 0)], ids=["0.8%", "1.2%", "a few MiB"]
)
def test_growth_is_a_failure(
    warm: int, end: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(it: Soak) -> None:
        it.samples = [Resident(350, warm * 2**20, 2**20), Resident(1_000, end * 2**20, 2**20)]

    monkeypatch.setattr(Soak, "run", run)
    assert main(["bench", "soak", "--requests", "1000", "--json"]) == code
    (row,) = rows_of(capsys)
    assert (row["engine_warm_mib"], row["engine_end_mib"]) == (warm, end)


def test_a_soak_too_short_to_be_warm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "soak", "--requests", "999"]) == 2
    assert "at least 1000 to be warm, got 999" in capsys.readouterr().err
