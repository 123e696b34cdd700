"""`make gpu-check` in its reduced form, on a CPU: so that it works when a device is there."""

import json
from pathlib import Path

import pytest

from tools import gpu_check


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "FAMILIES", ("llama",))
    monkeypatch.setattr(gpu_check, "ways", lambda device: [gpu_check.Way("bfloat16", "torch")])


REDUCED = ["--device", "cpu", "--shape", "tiny", "--prompts", "8", "--json"]


def test_the_reduced_form_finds_exact_tokens_under_preemption_and_times_decodes(few: None, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert gpu_check.main([*REDUCED, str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["check"], row["model"]) for row in rows] == [
        ("tokens", "embedded"),
        ("aborts and preemption", "embedded"),
        ("tokens", "llama"),
        ("aborts and preemption", "llama"),
        ("speed", "tiny"),
        ("speed", "tiny"),
    ]
    loaded = [row for row in rows if row["check"] == "aborts and preemption"]
    assert all(row["answers"] == 6 for row in loaded), "two of eight are aborted"
    assert all(row["preemptions"] > 0 for row in loaded)
    assert all(row["tokens_per_s"] > 0 and row["floor_ms"] > 0 for row in rows if row["check"] == "speed")


def test_an_inexact_token_fails_the_check(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = gpu_check.answer

    def wrong(*args, **named):
        answers, preemptions = honest(*args, **named)
        answers[1][3] = (answers[1][3] + 1) % 256
        return answers, preemptions

    monkeypatch.setattr(gpu_check, "answer", wrong)
    monkeypatch.setattr(gpu_check, "speed", lambda *args, **named: iter(()))
    monkeypatch.setattr("headway.accuracy.tiny_models.build", lambda name, folder, head_dim: _embedded())
    assert gpu_check.main([*REDUCED, str(tmp_path / "rows.json")]) == 1
    assert "0 inexact" not in capsys.readouterr().out.splitlines()[-1]


def _embedded() -> Path:
    from headway import default_model

    return default_model.PATH


def test_without_a_cuda_device_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
