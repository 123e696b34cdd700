"""`headway bench all` runs the benchmarks one after the other and writes a page of them."""

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from headway_lab import suite
from headway_lab.schedulers.contenders import PeerName
from headway_lab.suite import DRAWS, PEERS, Entry

from headway.bench import ENTRY_POINTS
from headway.bench.machine import machine
from headway.bench.tables import Column
from headway.cli import main

COLUMNS = (Column("who", "system", ""), Column("time", "us"))

# In place of `headway`: prints what its arguments say, and that it was asked for JSON.
FAKE = """
import json, sys
_, name, *rest = sys.argv[1:]
print(name, rest, file=sys.stderr)
assert "--json" in rest
for us in (1.0, 2.0):
    print(json.dumps({"system": name, "version": "1", "us": us}))
if name == "other":
    print(json.dumps({"count": 3}))
if "--plot" in rest:
    open(rest[rest.index("--plot") + 1], "w").close()
sys.exit(name == "broken")
"""

ENTRIES = (
    Entry("first", "The first", "one --size 1", "one --size 2", options=(PEERS, DRAWS), tables=(COLUMNS,)),
    Entry("second", "The second", "other"),
    Entry("third", "The third", "broken", tables=(COLUMNS,)),
)


@pytest.fixture
def run_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    monkeypatch.setattr(suite, "HEADWAY", (sys.executable, str(fake)))
    monkeypatch.setattr(suite, "SUITE", ENTRIES)
    out = tmp_path / "benchmarks"
    out.mkdir()
    return out, lambda *arguments: main(["bench", "all", "--out", str(out), *arguments])


def test_rows_pictures_and_a_page(run_all, capfd: pytest.CaptureFixture[str]) -> None:
    out, run = run_all
    assert run("--only", "first", "--only", "second", "--peer", "vllm") == 0
    rows = [json.loads(line) for line in (out / "results" / "first.jsonl").read_text().splitlines()]
    for row, us in zip(rows, (1.0, 2.0), strict=True):
        assert row.items() >= ({"system": "one", "version": "1", "us": us} | machine()).items()
        assert row["command"] == "headway bench one --size 1 --peer vllm" and row["exit_code"] == 0
    assert (out / "results" / "first.png").exists()
    page = (out / "results.md").read_text()
    for part in (
        "## The first",
        "`headway bench one --size 1 --peer vllm`",
        "| who | time |",
        "| one | 2.0 |",
        "![The first](results/first.png)",
        "## The second",
        "| system | version | us |",  # of rows of one kind
        "| count |",  # and of another
        machine()["machine"],
        "one 1, other 1",
    ):
        assert part in page
    assert "other ['--json']" in capfd.readouterr().err  # no peer, no picture: it takes neither


def test_full_takes_the_longer_arguments_where_there_are_any(run_all) -> None:
    out, run = run_all
    assert run("--full", "--only", "first", "--only", "second") == 0
    page = (out / "results.md").read_text()
    assert "`headway bench one --size 2`" in page and "`headway bench other`" in page


def test_a_benchmark_that_fails_stops_no_other_and_is_told(run_all, capfd: pytest.CaptureFixture[str]) -> None:
    out, run = run_all
    assert run("--only", "third", "--only", "second") == 1
    assert "these failed: third" in capfd.readouterr().err
    page = (out / "results.md").read_text()
    assert "## The second" in page and "ended with exit code 1" in page


@pytest.mark.parametrize(
    ("arguments", "says"), [(["--only", "nothing"], "one of first, second, third"), (["--out", "nowhere"], "no folder")]
)
def test_bad_input_is_refused_before_anything_runs(
    run_all, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = run_all
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and len(err.splitlines()) == 1


def test_the_page_keeps_what_was_measured_before(run_all) -> None:
    out, run = run_all
    assert run("--only", "first") == run("--only", "second") == 0
    page = (out / "results.md").read_text()
    assert page.index("## The first") < page.index("## The second")
    (out / "results" / "first.jsonl").unlink()
    assert run("--only", "second") == 0
    assert "## The first" not in (out / "results.md").read_text()


def test_what_needs_a_peer_runs_where_the_peer_or_the_entry_is_asked_for(
    run_all, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = run_all
    guest = Entry("guest", "The guest", "one", needs=PeerName.VLLM)
    monkeypatch.setattr(suite, "SUITE", (*ENTRIES[:2], guest))
    rows = out / "results" / "guest.jsonl"
    assert run() == 0 and not rows.exists()
    assert run("--peer", "transformers") == 0 and not rows.exists()
    assert run("--peer", "vllm") == 0 and rows.exists()
    rows.unlink()
    assert run("--only", "guest") == 0 and rows.exists()


def test_every_entry_names_a_command_that_there_is() -> None:
    commands = {"serve", "throughput", *entry_points(group=ENTRY_POINTS).names}
    for entry in suite.SUITE:
        for full in (False, True):
            assert entry.arguments(full, [])[0] in commands - {"all"}
    names = [entry.name for entry in suite.SUITE]
    assert len(set(names)) == len(names)


def test_every_entry_has_options_that_its_command_takes(capsys: pytest.CaptureFixture[str]) -> None:
    for entry in suite.SUITE:
        main(["bench", entry.arguments(False, [])[0], "--help"])
        text = capsys.readouterr().out
        assert all(option in text for option in (*entry.options, "--json"))
