"""The flags of vLLM: each has a fate, and a command line in vLLM's words is taken as it is meant."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from headway.cli import app, main
from headway.commands.vllm_flags import FATES, Holds, Taken, flags
from headway.config import EngineConfig
from headway.server.entrance.doors import Doors
from headway.server.entrance.keys import ApiKey
from headway.server.settings import ServerSettings

Settings = tuple[EngineConfig, ServerSettings]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Settings]:
    """What a line of `headway serve` starts. A line that is refused raises ValueError with the refusal."""
    started: list[Settings] = []
    monkeypatch.setattr("headway.server.serve.serve", lambda *settings: started.append(settings) or 0)

    def run(*words: str) -> Settings:
        if (code := main(["serve", *words])) != 0:
            error = capsys.readouterr().err
            assert code == 2 and error.count("\n") == 1, error
            raise ValueError(error)
        return started.pop()

    return run


def test_every_flag_of_vllm_has_a_fate_and_every_fate_is_of_a_flag() -> None:
    assert set(FATES) == set(flags())


def test_what_is_accepted_is_an_option_of_ours() -> None:
    command: Any = typer.main.get_command(app).get_command(None, "serve")  # type: ignore[attr-defined]
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    for name, fate in FATES.items():
        others = fate.instead.values() if isinstance(fate, Holds) else [fate.ours] if isinstance(fate, Taken) else []
        for ours in others:
            assert ours in own or ours in ("MODEL", "--config"), f"{name}: {ours}"


@pytest.mark.parametrize(
    ("line", "config"),
    [
        ("m", {}),
        ("--model m", {}),
        ("--model=m --max_model_len=1k", {"max_model_len": 1000}),
        ("m --max-model-len 1K", {"max_model_len": 1024}),
        ("m --max-num-batched-tokens 2.5k", {"max_num_batched_tokens": 2500}),
        ("m --max-model-len auto --long-prefill-token-threshold 0", {}),
        ("m --max-model-len -1 --seed -1", {"seed": -1}),
        ("m --dtype half", {"dtype": "float16"}),
        ("m --dtype float", {"dtype": "float32"}),
        ("m --dtype=bfloat16", {"dtype": "bfloat16"}),
        ("m --num-gpu-blocks-override 300", {"num_blocks": 300}),
        ("m --kv-cache-memory-bytes 2G", {"kv_cache_memory_gb": 2.0}),
        ("m --max-num-queued-reqs 7", {"max_waiting": 7}),
        ("m -tp 1 -pp 1 -dp 1 -tp=1", {}),
        ("m -tp 2", {"tensor_parallel_size": 2}),
        ("m --tensor_parallel_size=4", {"tensor_parallel_size": 4}),
        ("-O3 m -O 3 -O=0", {}),
        ("m --enable-prefix-caching --enable-chunked-prefill --disable-log-requests", {}),
        ("m --no-enable-prefix-caching", {"enable_prefix_caching": False}),
        ("m --disable-prefix-caching", {"enable_prefix_caching": False}),
        ("m --generation-config auto --load-format auto --kv-cache-dtype auto --quantization none", {}),
        ("m --no-async-scheduling --enforce-eager", {"async_scheduling": False, "enforce_eager": True}),
        ("m --async-scheduling --no-trust-remote-code", {}),
        ("m --served-model-name qwen", {"served_model_name": "qwen"}),
        ("--served-model-name qwen m", {"served_model_name": "qwen"}),
        ("--host 127.0.0.1 -- m", {}),
    ],
)
def test_a_line_in_vllms_words_means_the_same_here(
    serve: Callable[..., Settings], line: str, config: dict[str, Any]
) -> None:
    assert serve(*line.split()) == (EngineConfig(model="m", **config), ServerSettings())


def test_further_names_of_the_model_are_its_aliases(serve: Callable[..., Settings]) -> None:
    settings = ServerSettings(model_aliases=("small", "fast"), port=9)
    config = EngineConfig(model="m", served_model_name="qwen")
    assert serve("m", "--served-model-name", "qwen", "small", "fast", "--port", "9") == (config, settings)
    assert serve("--served-model-name", "qwen", "small", "fast", "m", "--port=9") == (config, settings)


def test_several_keys_follow_one_flag_as_in_vllm(serve: Callable[..., Settings]) -> None:
    config, settings = serve("m", "--api-key", "a", "b", "--api-key=c")
    assert config.model == "m" and settings.doors == Doors(keys=tuple(map(ApiKey.of, "abc")))


def test_a_model_after_a_key_is_the_model_and_no_key(serve: Callable[..., Settings]) -> None:
    config, settings = serve("--api-key", "a", "m")
    assert config.model == "m" and settings.doors == Doors(keys=(ApiKey.of("a"),))
    config, settings = serve("--api-key", "a", "--served-model-name", "b")
    assert config == EngineConfig(served_model_name="b") and settings.doors == Doors(keys=(ApiKey.of("a"),))


@pytest.mark.parametrize("words", [["--api-key", ""], ["--api-key="], ["--api-key", "a", ""], ["--api-key", "a,"]])
def test_a_key_of_nothing_opens_no_door(serve: Callable[..., Settings], words: list[str]) -> None:
    """A variable that is not set: --api-key "$KEY"."""
    with pytest.raises(ValueError, match="an API key must be"):
        serve("m", *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "m -pp 2",
            "-pp 2 is not supported: an engine computes on one device, or on several by --tensor-parallel-size",
        ),
        ("m --pipeline_parallel_size=4", "--pipeline-parallel-size 4 is not supported"),
        ("m -tp 0", "tensor_parallel_size must be at least 1"),
        ("m --enable-lora", "LoRA adapters are not served"),
        ("m --quantization awq", "--quantization is not supported: weights are served as the checkpoint has them"),
        ("m --kv-cache-dtype fp8", "--kv-cache-dtype fp8 is not supported"),
        ("m --speculative-config {}", "no draft model is run"),
        ("m --kv-transfer-config {}", "--kv-listen"),
        ("m --no-enable-chunked-prefill", "long prompts are computed in chunks, always"),
        ("m --enable-log-requests", "prompts are never logged"),
        ("m --max-model-len 1.5K", "'1.5K' is no whole number"),
        ("m --model n", "the model is named twice: m and n"),
        ("a b", "the model is named twice: a and b"),
        ("m --seed", "Option '--seed' requires an argument"),
        ("m --served-model-name --seed 1", "Option '--served-model-name' requires an argument"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_that_says_so(
    serve: Callable[..., Settings], line: str, words: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        serve(*line.split())
    assert words in str(refusal.value)


def test_a_token_on_a_refused_line_is_not_repeated(serve: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match="set HF_TOKEN") as refusal:
        serve("m", "--hf-token", "hf_secret")
    assert "hf_secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--tensor_paralel_size", "--tensor-parallel-size"),
        ("--max-model-length", "--max-model-len"),
        ("--enable-prefix-cache", "--enable-prefix-caching"),
        ("--num_block", "--num-blocks"),
        ("--api-keys", "--api-key"),
    ],
)
def test_a_typo_suggests_the_flag_that_is_meant(serve: Callable[..., Settings], typed: str, meant: str) -> None:
    with pytest.raises(ValueError) as refusal:
        serve("m", typed, "1")
    assert f"No such option: {typed.replace('_', '-')} (did you mean {meant}" in str(refusal.value)
    assert "encoder" not in str(refusal.value)


def test_a_name_like_no_other_suggests_nothing(serve: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match="No such option: --xyzzy\n"):
        serve("m", "--xyzzy=1")


def test_a_flag_that_does_nothing_here_is_said_to(
    serve: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    line = ["m", "-cc", '{"mode": 3}', "--swap-space", "4", "--cudagraph-capture-sizes", "1", "2", "--port", "8000"]
    assert serve(*line) == (EngineConfig(model="m"), ServerSettings())
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "-cc has no effect",
        "--swap-space has no effect",
        "--cudagraph-capture-sizes has no effect",
    ]


def test_the_defaults_of_vllm_ask_for_nothing(serve: Callable[..., Settings], caplog: Any) -> None:
    caplog.set_level(logging.WARNING)
    defaults = {name: flag.default for name, flag in flags().items() if flag.takes == 1 and flag.default is not None}
    line = [f"--{name}={value}" for name, value in defaults.items() if not isinstance(FATES[name], Taken)]
    assert len(line) > 50
    assert serve("m", *line) == (EngineConfig(model="m"), ServerSettings())
    assert not caplog.records


# A file of flags --------------------------------------------------------------------------------------------

FILE = """\
model: m
max-model-len: 4k
max_num_seqs: 5
served-model-name: [qwen, small]
enforce-eager: true
trust-remote-code: false
access-log: false
allowed-origins: ["https://a"]
tensor-parallel-size: 1
compilation-config: {mode: 0}
"""


def write(folder: Path, text: str) -> str:
    file = folder / "flags.yaml"
    file.write_text(text)
    return str(file)


def test_a_file_of_flags_is_read_and_the_command_line_wins(serve: Callable[..., Settings], tmp_path: Path) -> None:
    file = write(tmp_path, FILE)
    settings = ServerSettings(model_aliases=("small",), doors=Doors(allowed_origins=("https://a",)))
    config = {"enforce_eager": True, "max_num_seqs": 5}
    given = EngineConfig(model="m", served_model_name="qwen", max_model_len=4000, **config)  # type: ignore[arg-type]
    assert serve("--config", file) == (given, settings)
    won = EngineConfig(model="n", served_model_name="other", max_model_len=100, **config)  # type: ignore[arg-type]
    line = ["n", "--config", file, "--max_model_len=100", "--served-model-name", "other"]
    assert serve(*line) == (won, ServerSettings(doors=settings.doors))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: m\n\nmax-modle-len: 4\n", "line 3: No such option: --max-modle-len (did you mean --max-model-len"),
        ("a: 1\nenable-lora: true\n", "line 1: No such option: --a"),
        ("\nenable-lora: true\n", "line 2: --enable-lora is not supported"),
        ("seed: 1\nseed: 2\n", "line 2: seed is there twice, also in"),
        ("seed:\n", "line 1: seed has no value"),
        (
            "port: 1\nseed: !!python/name:os.system\n",
            "line 2: the value cannot be read: could not determine a constructor",
        ),
        ("seed: 2020-99-99\n", "line 1: the value cannot be read: month must be in"),
        ("- seed\n", "must hold keys and values"),
        ("seed: [1\nx: 2", "is not valid YAML"),
        ("config: other.yaml\n", "line 1: a file of flags names no other file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(
    serve: Callable[..., Settings], tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        serve("--config", write(tmp_path, text))
    assert words in str(refusal.value) and "flags.yaml" in str(refusal.value)


def test_a_null_that_is_written_out_sets_nothing(serve: Callable[..., Settings], tmp_path: Path) -> None:
    assert serve("--config", write(tmp_path, "seed: null\nmax-model-len: ~\n")) == (EngineConfig(), ServerSettings())


def test_a_file_that_is_empty_sets_nothing(serve: Callable[..., Settings], tmp_path: Path) -> None:
    assert serve("--config", write(tmp_path, "# nothing\n")) == (EngineConfig(), ServerSettings())


# Completion -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "completed"),
    [("headway ser", "serve"), ("headway serve -tp 1 --max_x --max-model", "--max-model-len")],
)
def test_a_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, completed: str
) -> None:
    monkeypatch.setenv("_HEADWAY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    with pytest.raises(SystemExit) as done:
        main([])
    assert done.value.code == 0
    assert capsys.readouterr().out.split() == [completed]
