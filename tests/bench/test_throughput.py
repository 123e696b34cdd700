"""`headway bench throughput` generates with every system, each in a process of its own, and compares them."""

from pathlib import Path

import pytest

from headway.bench import throughput
from headway.bench.child_process import ChildError
from headway.bench.generator_process import GeneratorProcess
from headway.bench.generators import GENERATORS, Answers, Setting
from headway.bench.shapes import SHAPES
from headway.cli import main
from tests.bench.printed import rows_of

TINY = ["bench", "throughput", "--shape", "tiny", "--threads", "1", "--new-tokens", "8"]


def test_all_systems_answer_and_are_compared(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--json"]) == 0
    rows = rows_of(capfd)
    assert [row["system"] for row in rows] == [title for title, _ in GENERATORS.values()]
    ours, batching = rows[0], rows[-1]
    for row in rows:
        assert (row["requests"], row["rounds"], row["generated_tokens"], row["threads"]) == (4, 3, 32, 1)
        assert row["tokens_per_s_low"] <= row["tokens_per_s"] <= row["tokens_per_s_high"]
        assert row["floor_ms"] > 0
        if row["decode_steps"]:  # none where the first answer was complete before the last request had come
            assert 0 < row["forward_percent"] <= 100 and row["step_ms"] > 0
        assert row.get("differing", 0) == 0
    assert "times_headway" not in ours and "times_batching" not in batching
    assert ours["times_batching"] == batching["times_headway"] > 0


def test_several_sizes_and_threads_in_a_table_and_a_picture(tmp_path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    file = tmp_path / "throughput.svg"
    some = ["--systems", "headway", "--threads", "1,2", "--requests", "1,3", "--plot", str(file)]
    assert main(["bench", "throughput", "--shape", "tiny", "--new-tokens", "8", *some]) == 0
    out = capfd.readouterr().out
    assert "forward" in out and "batching" not in out
    for requests, threads in ((1, 1), (3, 1), (1, 2), (3, 2)):
        assert f"headway, {requests} at a time, {threads} threads" in file.read_text()


def test_a_system_that_fails_ends_it_with_its_last_words(monkeypatch, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(*arguments):
        raise ChildError("the peer caught fire")

    monkeypatch.setattr(throughput.GeneratorProcess, "generate", broken)
    assert main([*TINY, "--systems", "headway"]) == 1
    assert "the peer caught fire" in capfd.readouterr().err


def test_what_a_process_raises_arrives_here() -> None:
    setting = Setting(Path("/nowhere/at/all"), "cpu", "float32", 1, 32, 1)
    with pytest.raises(ChildError, match="ValueError"), GeneratorProcess("headway", setting):
        pass


def test_a_step_is_timed_while_all_decode() -> None:
    """Two requests: the second has its first token at 2.0, and the first its last at 5.0."""
    answers = Answers(
        tokens=[[1] * 5, [1] * 4],
        times=[[1.0, 2.0, 3.0, 4.5, 5.0], [2.0, 3.0, 4.5, 6.0]],
        forwards=[(0.0, 1.9), (2.1, 2.9), (3.1, 4.4), (4.9, 5.6)],
    )
    row = throughput._step([answers])
    assert (row["decode_steps"], row["step_ms"]) == (3, 1000.0)
    assert row["forward_percent"] == pytest.approx(100 * (0.8 + 1.3 + 0.1) / 3.0, abs=0.05)
    assert answers.seconds == 6.0


def test_what_a_step_must_read() -> None:
    """Qwen3-8B has 8.2 billion weights, of which 0.6 billion are the embedding; 147,456 bytes of KV for a token."""
    shape = SHAPES["qwen3-8b"]
    assert shape.weight_bytes == pytest.approx(2 * 7.57e9, rel=0.01)
    assert shape.kv_bytes_per_token == 147_456


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shape", "huge"], "one of small, qwen3-8b, tiny, got 'huge'"),
        (["--rounds", "2"], "at least 3 for a median, got 2"),
        (["--threads", "0"], "whole numbers in [1, 1024] with commas between them, got '0'"),
        (["--requests", "4,x"], "whole numbers in [1, 1024] with commas between them, got '4,x'"),
        (["--new-tokens", "3"], "from 4 to 8168, got 3"),
        (["--systems", "headway,vllm"], "got 'headway,vllm'"),
        (["--systems", "headway,headway"], "each once"),
        (["--device", "tpu"], "cpu or cuda, got 'tpu'"),
        (["--plot", "it.gif"], "must end in .png or .svg, got 'it.gif'"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and len(err.splitlines()) == 1


def test_cuda_that_is_not_there_is_refused(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*TINY, "--device", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
