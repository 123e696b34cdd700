"""`headway bench memory` weighs the scheduler's state in processes of their own, and soaks an engine."""

import subprocess
import sys
import time

import pytest
from headway_lab.benches import memory
from headway_lab.benches.memory import FOOTPRINT, Resident, Soak, bytes_each
from headway_lab.rigs import footprint

from headway.cli import main
from headway.engine.engine import Engine
from tests.bench.printed import rows_of


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"slots": (64, 4_096), "running": (16, 256), "blocks": (4_096, 65_536), "cached": (4_096, 8_192)}
    monkeypatch.setattr(memory, "COUNTS", counts)


def test_what_is_weighed_is_what_is_named() -> None:
    slots = footprint.build("slots", 32)
    assert (slots.snapshot().num_slots, slots.snapshot().num_running) == (32, 0)
    running = footprint.build("running", 32)
    assert running.snapshot().num_running == 32
    blocks = footprint.build("blocks", 4_096).snapshot()
    assert blocks.num_blocks_free == blocks.num_blocks_total == 4_096
    cached = footprint.build("cached", 4_096).snapshot()
    assert (cached.num_blocks_evictable, cached.num_blocks_total) == (4_096, 4_096)


def test_each_is_weighed_in_a_process_of_its_own() -> None:
    output = subprocess.check_output([sys.executable, "-m", FOOTPRINT, "blocks", "65536"], text=True)
    assert int(output) >= 65_536 * 8  # a block has at least a count and a place in a list


def test_the_slope_between_two_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_footprint", lambda what, count: 1_000 + 24 * count)
    assert bytes_each("blocks", 100, 300)["bytes_each"] == 24.0


def test_growth_is_from_the_first_warm_tenth_to_the_last() -> None:
    soak = Soak(seconds=100.0)
    resident = {range(20): 10, range(20, 31): 2_000, range(31, 90): 9_999, range(90, 101): 2_010}
    soak.samples = [Resident(float(s), size) for span, size in resident.items() for s in span]
    assert soak.row()["growth_percent"] == pytest.approx(0.5)


class StepClock:
    """Time that passes in steps of the engine, however long they take: a sleep lasts one step at least."""

    engine: Engine

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        step_id = self.engine.manager.snapshot().step_id
        until = time.monotonic() + 60
        while self.engine.manager.snapshot().step_id == step_id:
            assert time.monotonic() < until, "the engine makes no steps"
            time.sleep(0.0005)
        self.now += seconds


def test_a_soak_aborts_finishes_and_shares_and_ends_with_no_request_left() -> None:
    clock = StepClock()
    soak = Soak(0.6, clock=clock, sleep=clock.sleep)
    clock.engine = soak._engine
    soak.run()
    row = soak.row()
    assert row["requests"] > 300 and row["aborted"] > 0 and row["steps"] >= 300
    snapshot = soak._engine.manager.snapshot()
    assert snapshot.num_prefix_hit_tokens > 0
    assert len(soak.samples) >= 20


@pytest.mark.parametrize(("growth", "code"), [(0.99, 0), (1.0, 1)])
def test_growth_of_one_percent_is_a_failure(
    growth: float, code: int, few: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Quick(Soak):
        def run(self) -> None:
            self.samples = [Resident(0.0, 2**20), Resident(self.seconds, 2**20)]

        def row(self):
            return {"seconds": self.seconds, "growth_percent": growth}

    monkeypatch.setattr(memory, "Soak", Quick)
    monkeypatch.setattr(memory, "_footprint", lambda what, count: 8 * count)
    assert main(["bench", "memory", "--seconds", "10", "--json"]) == code
    rows = rows_of(capsys)
    assert [row.get("what") for row in rows] == ["slots", "running", "blocks", "cached", None]


def test_tables_and_a_picture_of_the_soak(
    few: None, monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    monkeypatch.setattr(Soak, "run", lambda soak: soak.samples.extend(Resident(float(s), 2**20) for s in range(10)))
    monkeypatch.setattr(memory, "_footprint", lambda what, count: 8 * count)
    file = tmp_path / "memory.svg"
    assert main(["bench", "memory", "--seconds", "10", "--plot", str(file)]) == 0
    out = capsys.readouterr().out
    assert "bytes each" in out and "growth" in out and "cached: a full block" in out
    assert "Resident memory" in file.read_text()


def test_the_soak_can_be_left_out(few: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "memory", "--seconds", "0", "--json"]) == 0
    rows = rows_of(capsys)
    assert [row["what"] for row in rows] == ["slots", "running", "blocks", "cached"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seconds", "9"], "0 or at least 10"),
        (["--seconds", "-1"], "0 or at least 10"),
        (["--seconds", "nan"], "0 or at least 10"),
        (["--seconds", "0", "--plot", "a.png"], "leaves out"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "memory", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and len(err.splitlines()) == 1
