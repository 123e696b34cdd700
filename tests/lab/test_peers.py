"""Peers run our workloads in processes of their own, where headway need not be; one that cannot be had is told."""

import ast
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
from headway_lab.peers import process
from headway_lab.schedulers.workloads import Churn, LongPrompt, Preemption, SteadyDecode

from headway.bench.child_process import ChildError
from headway.cli import main

STEADY = SteadyDecode(running=2, steps=10, rounds=2)

# A scheduler that admits every request and computes everything at once.
DRIVER = """
    import numpy as np

    NAME, VERSION = "fake", "1.2"

    class System:
        num_preemptions = 0

        def __init__(self, capacity):
            print("noise on standard output")
            self.running, self.cached = {}, False

        def pack(self, tokens):
            return tokens.tolist()

        def create(self, name, prompt, max_tokens, priority):
            return [name, len(prompt), max_tokens]

        def add(self, request):
            self.running[request[0]] = request

        def schedule(self):
            return {name: length for name, (_, length, _) in self.running.items()}

        def size(self, batch):
            return len(batch), sum(batch.values())

        def compute(self, batch):
            return None

        def update(self, batch, result):
            ended = 0
            for name in batch:
                request = self.running[name]
                request[1:] = 1, request[2] - 1
                if not request[2]:
                    del self.running[name]
                    ended += 1
            return ended

        def end(self, request):
            self.running.pop(request[0], None)

        def forget_cached(self):
            pass
"""

# The same, run where an import of headway fails.
WITHOUT_HEADWAY = "import runpy, sys; sys.modules['headway'] = None; sys.argv = sys.argv[1:]; " + (
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@dataclass
class At:
    """A place that a peer can run in."""

    place: Path
    how_to_get: str = ""

    def python(self) -> Path:
        return self.place


def peer_of(tmp_path: Path, driver: str) -> process.Peer:
    file = tmp_path / "fake_system.py"
    file.write_text(dedent(driver))
    return process.Peer([sys.executable, "-c", WITHOUT_HEADWAY, *process.RUNNER, str(file)])


@pytest.fixture
def peer(tmp_path: Path):
    with peer_of(tmp_path, DRIVER) as peer:
        yield peer


def test_a_peer_says_who_it_is(peer: process.Peer) -> None:
    assert (peer.name, peer.version) == ("fake", "1.2")


def test_every_workload_gives_its_samples_round_by_round(peer: process.Peer) -> None:
    first, second = peer.run(STEADY)
    assert len(first["schedule_us"]) == len(second["update_us"]) == 10
    (churn,) = peer.run(Churn(requests=10, rounds=1, warm_up=2, prompt=4, output=3, concurrent=2))
    assert churn["ended"] == [10]
    (whole,) = peer.run(Preemption(1, requests=3, prompt=4, output=5))
    assert whole["computed_tokens"] == [3 * 8] and whole["preemptions"] == [0]


def test_rounds_of_several_workloads_may_be_taken_in_turn(peer: process.Peer) -> None:
    one, other = peer.run(STEADY), peer.run(SteadyDecode(running=3, steps=5, rounds=2))
    lengths = [(len(a["update_us"]), len(b["update_us"])) for a, b in zip(one, other, strict=True)]
    assert lengths == [(10, 5)] * 2


def test_a_peer_that_dies_leaves_its_last_words(peer: process.Peer) -> None:
    with pytest.raises(ChildError, match=r"(?s)the process failed.*warm: 256"):
        list(peer.run(LongPrompt(repeats=1, rounds=1, tokens=256)))  # it has no prefix cache


def test_one_that_does_not_start_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such module >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setitem(process.PEERS, "vllm", At(broken, "see that it is there"))
    assert main(["bench", "step", "--running", "2", "--peer", "vllm"]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1
    assert "no such module" in err and "see that it is there" in err


def test_the_process_ends_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = peer_of(tmp_path, DRIVER)
    monkeypatch.setattr(process, "Peer", lambda command: peer)
    monkeypatch.setitem(process.PEERS, "vllm", At(Path(sys.executable)))
    with pytest.raises(KeyboardInterrupt), process.open_peer("vllm"):
        raise KeyboardInterrupt
    assert peer._process.returncode is not None


RUN_THERE = [Path(file) for file in process.RUNNER] + [process.HERE / f"{name}_system.py" for name in process.PEERS]


@pytest.mark.parametrize("file", RUN_THERE, ids=lambda file: file.name)
def test_what_runs_in_the_peers_process_imports_nothing_of_headway(file: Path) -> None:
    tree = ast.parse(file.read_text())
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert not [name for name in imported if name and name.startswith("headway")]


def test_transformers_runs_every_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    with process.open_peer("transformers") as peer:
        assert peer.name == "transformers"
        (steady,) = peer.run(SteadyDecode(running=3, steps=5, rounds=1))
        assert len(steady["update_us"]) == 5
        (churn,) = peer.run(Churn(requests=8, rounds=1, warm_up=4, prompt=20, output=3, concurrent=4, num_blocks=200))
        assert churn["ended"][0] >= 8
        (prompt,) = peer.run(LongPrompt(repeats=1, rounds=1, tokens=1_024))
        assert prompt["warm_us"][0] > 0
        (whole,) = peer.run(Preemption(1, requests=6, prompt=512, output=40, num_blocks=160))
        assert whole["computed_tokens"][0] >= 6 * 551


def test_without_transformers_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "churn", "--peer", "transformers"]) == 2
    out, err = capsys.readouterr()
    assert not out and "pip install 'transformers" in err and len(err.splitlines()) == 1
