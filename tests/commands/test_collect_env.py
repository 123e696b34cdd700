"""`headway collect-env`: what a report of a fault should say, and no secrets."""

from __future__ import annotations

import json
import subprocess

import pytest

import headway
from headway.cli import main


def test_versions_processor_and_memory_are_told_and_no_secret_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HEADWAY_API_KEY", "HEADWAY_KV_SECRET", "HF_TOKEN", "OPENAI_API_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "a-secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert main(["collect-env", "--json"]) == 0
    shown = capsys.readouterr().out
    facts = json.loads(shown)
    assert facts["headway"] == headway.__version__ and facts["OMP_NUM_THREADS"] == "3"
    assert {"python", "system", "processor", "cores", "memory", "torch", "transformers", "numpy"} <= set(facts)
    assert "a-secret" not in shown
    assert main(["collect-env"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][:2] == ["headway", "python"]


def test_every_gpu_has_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def driver(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, stdout="A, 80 GiB, 1\nB, 80 GiB, 1\n")

    monkeypatch.setattr("headway.commands.collect_env.subprocess.run", driver)
    assert main(["collect-env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["gpu 0"], facts["gpu 1"]) == ("A, 80 GiB, 1", "B, 80 GiB, 1")


def test_a_driver_that_does_not_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def driver(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 30)

    monkeypatch.setattr("headway.commands.collect_env.subprocess.run", driver)
    assert main(["collect-env"]) == 0
    assert "nvidia-smi does not answer" in capsys.readouterr().out
