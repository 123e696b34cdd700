"""The command line, on a model that says its prompt again."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import fields

import pytest

import headway
from headway.cli import main
from headway.commands import options
from headway.config import EngineConfig, KVTransport, Role
from headway.server.entrance.doors import Doors
from headway.server.settings import ServerSettings
from tests.echo_model import MAX_MODEL_LEN, use_echo_model, write_echo_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_echo_model(tmp_path_factory.mktemp("echo")))


@pytest.fixture(autouse=True)
def _echo(monkeypatch):
    use_echo_model(monkeypatch)


@pytest.fixture
def stdin(monkeypatch):
    def set_stdin(text: str, *, terminal: bool = False) -> None:
        stream = io.StringIO(text)
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdin", stream)

    set_stdin("")
    return set_stdin


@pytest.fixture
def run(stdin, capsys):
    """Run a command line: (exit code, standard output, standard error)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# generate ---------------------------------------------------------------------------------------------------


def test_generate_prints_the_answer(run, model):
    assert run("generate", "hello", "--model", model) == (0, "hello\n", "")


def test_several_prompts_are_printed_with_their_answers(run, model):
    assert run("generate", "one", "two", "--model", model) == (0, "one\none\ntwo\ntwo\n", "")


@pytest.mark.parametrize("how", ["stdin", "dash", "file"])
def test_prompts_may_come_from_a_file_or_standard_input_one_a_line(run, stdin, model, tmp_path, how):
    lines = "one\n\ntwo 🎉\n"
    (tmp_path / "prompts").write_text(lines, encoding="utf-8")
    stdin(lines if how != "file" else "")
    named = {"stdin": [], "dash": ["--file", "-"], "file": ["-f", tmp_path / "prompts"]}[how]
    code, out, err = run("generate", *named, "--model", model, "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["one", "two 🎉"]


def test_json_is_one_flat_object_per_answer_and_line(run, model):
    code, out, _ = run("generate", "abc", "abcdefgh", "-n", 2, "--max-tokens", 5, "--json", "--model", model)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(r["prompt_index"], r["answer_index"], r["text"], r["finish_reason"]) for r in rows] == [
        (0, 0, "abc", "stop"),
        (0, 1, "abc", "stop"),
        (1, 0, "abcde", "length"),
        (1, 1, "abcde", "length"),
    ]
    assert [(r["prompt_tokens"], r["output_tokens"]) for r in rows] == [(3, 4), (3, 4), (8, 5), (8, 5)]
    for row in rows:
        assert 0 <= row["first_token_ms"] <= row["total_ms"]
        assert not any(isinstance(value, dict | list) for value in row.values())


def test_sampling_options_reach_the_request(run, model):
    assert run("generate", "abcdef", "--model", model, "--stop", "e", "--stop", "d") == (0, "abc\n", "")
    _, out, _ = run("generate", "ab", "--model", model, "--ignore-eos", "--max-tokens", 7, "--json")
    assert json.loads(out)["output_tokens"] == 7


def test_a_request_that_fails_is_reported_and_the_exit_code_is_1(monkeypatch, run, model):
    def fail(batch):
        raise RuntimeError("bit flip")

    use_echo_model(monkeypatch, before_step=fail)
    code, out, err = run("generate", "abc", "--model", model)
    assert (code, out) == (1, "\n")
    assert "bit flip" in err


def test_an_engine_that_dies_is_reported_and_the_exit_code_is_1(monkeypatch, run, model):
    use_echo_model(monkeypatch, before_step=lambda batch: time.sleep(2))
    code, out, err = run("generate", "abc", "--model", model, "--step-timeout", 0.1)
    assert (code, out) == (1, "")
    assert "did not answer within step_timeout" in err.splitlines()[-1]


# Engine options ---------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    """Catches the configuration with which a command starts its engine or its server."""
    configs = []

    def stop_here(config, *args, **kwargs):
        configs.append(config)
        raise ValueError("seen")

    monkeypatch.setattr("headway.llm.ModelFiles.resolve", stop_here)
    monkeypatch.setattr("headway.server.serve.serve", stop_here)
    return configs


@pytest.mark.parametrize("command", ["generate", "chat", "serve"])
def test_every_command_takes_every_setting_of_the_engine(run, stdin, seen, command):
    stdin("hello")
    values = {
        "tokenizer": "t",
        "revision": "r",
        "trust_remote_code": True,
        "served_model_name": "name",
        "scheduler": "v1",
        "role": Role.PREFILL,
        "device": "cpu",
        "dtype": "float32",
        "max_num_seqs": 3,
        "max_num_batched_tokens": 17,
        "max_model_len": 99,
        "block_size": 8,
        "num_blocks": 77,
        "kv_cache_memory_gb": 0.5,
        "gpu_memory_utilization": 0.5,
        "attention_backend": "flashinfer",
        "enforce_eager": True,
        "tensor_parallel_size": 1,  # more do not go with this role; see test_vllm_flags.py
        "enable_prefix_caching": False,
        "max_waiting": 5,
        "async_scheduling": False,
        "step_timeout": 6.0,
        "seed": 7,
        "enable_output_caching": False,
        "max_num_partial_prefills": 2,
        "long_prefill_token_threshold": 12,
        "max_long_partial_prefills": 2,
        "deterministic": True,
        "deterministic_chunk_size": 4,
        "encoder_cache_size": 33,
        "num_speculative_tokens": 2,
        "reserve": "blocks",
        "max_bypass": 3,
        "ageing_seconds": 1.5,
        "victim": "last-in-line",
        "enable_priority_preemption": False,
        "preprocess_timeout": 1.5,
        "reservation_timeout": 2.0,
        "hold_timeout": 3.0,
        "send_timeout": 4.0,
        "lend_timeout": 5.0,
        "receive_timeout": 7.0,
        "max_lent_blocks": 8,
        "max_receiving_blocks": 9,
        "kv_listen": "127.0.0.1:7000",
        "kv_peers": "a:1,b:2",
        "kv_secret": "sixteen characters",
        "kv_transport": KVTransport.TCP,
        "kv_events_config": '{"enable_kv_cache_events": false, "topic": "kv"}',
    }
    assert {"model", *values} == {field.name for field in fields(EngineConfig)}
    options = []
    for name, value in values.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            options.append(option if value else option.replace("--", "--no-"))
        else:
            options += [option, str(value)]
    code, _, err = run(command, *options, *(["m"] if command == "serve" else ["--model", "m"]))
    assert (code, err) == (2, "headway: seen\n")
    assert seen == [EngineConfig(model="m", **values)]


@pytest.mark.parametrize("command", ["generate", "chat", "serve"])
def test_help_shows_how_to_schedule_in_a_panel_of_its_own(run, command):
    code, out, _ = run(command, "--help-all")
    assert code == 0
    before, panel = out.split("Scheduling:")
    assert "--role" in out
    for option in ("--reserve", "--victim", "--max-bypass", "--no-enable-priority-preemption"):
        assert option in panel and option not in before
    for option in options._NOT_SHOWN:
        assert option.replace("_", "-") not in out, "no command has a use for it yet"


@pytest.mark.parametrize("command", ["generate", "chat", "serve"])
def test_without_options_the_engine_has_its_defaults_and_the_embedded_model(run, stdin, seen, command):
    stdin("hello")
    run(command)
    assert seen == [EngineConfig()]


# chat -------------------------------------------------------------------------------------------------------


def test_chat_answers_lines_that_are_piped_in_as_one_conversation(run, stdin, model):
    stdin("hi\n\n  ho  \n")
    first = "<|user|>hi<|assistant|>"
    second = f"{first}{first}<|user|>ho<|assistant|>"
    assert run("chat", "--model", model) == (0, f"{first}\n{second}\n", "")


def test_chat_starts_over_on_demand_and_keeps_the_system_message(run, stdin, model):
    stdin("hi\n/new\nho\n/exit\nnever\n")
    system = "<|system|>S"
    expected = f"{system}<|user|>hi<|assistant|>\n{system}<|user|>ho<|assistant|>\n"
    assert run("chat", "--model", model, "--system", "S") == (0, expected, "")


def test_chat_takes_a_template_from_a_file(run, stdin, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[-1].content }}!")
    stdin("hi\n")
    model = write_echo_model(tmp_path, chat_template=False)
    assert run("chat", "--model", model, "--chat-template", template) == (0, "hi!\n", "")


def test_chat_with_a_model_that_has_no_template_is_refused(run, stdin, tmp_path):
    stdin("hi\n")
    code, out, err = run("chat", "--model", write_echo_model(tmp_path, chat_template=False))
    assert (code, out) == (2, "")
    assert "no chat template" in err


def test_what_cannot_be_answered_ends_a_piped_chat_but_not_one_at_a_terminal(run, stdin, model):
    long = "x" * MAX_MODEL_LEN
    stdin(f"{long}\nhi\n")
    code, out, err = run("chat", "--model", model)
    assert (code, out) == (2, "")
    assert f"maximum context length is {MAX_MODEL_LEN} tokens" in err
    stdin(f"{long}\nhi\n", terminal=True)
    code, out, err = run("chat", "--model", model)
    assert code == 0
    assert f"maximum context length is {MAX_MODEL_LEN} tokens" in err
    assert "<|user|>hi<|assistant|>\n" in out, "and the conversation goes on without it"


def test_ctrl_c_at_a_terminal_ends_the_answer_and_not_the_chat(monkeypatch, run, stdin, model):
    def interrupt_once(batch):
        if batch.step_id == 5:
            signal.raise_signal(signal.SIGINT)

    use_echo_model(monkeypatch, before_step=interrupt_once)
    stdin(f"{'x' * 100}\nhi\n", terminal=True)
    code, out, _ = run("chat", "--model", model)
    assert code == 0
    assert "x" * 100 not in out
    assert "<|user|>hi<|assistant|>\n" in out
    stdin(f"{'x' * 100}\nhi\n")
    assert run("chat", "--model", model)[0] == 130, "piped, it ends the command"


def test_a_failing_step_ends_a_piped_chat_with_code_1(monkeypatch, run, stdin, model):
    def fail(batch):
        raise RuntimeError("bit flip")

    use_echo_model(monkeypatch, before_step=fail)
    stdin("hi\n")
    code, _, err = run("chat", "--model", model)
    assert code == 1
    assert "bit flip" in err
    stdin("hi\n", terminal=True)
    assert run("chat", "--model", model)[0] == 0


# serve, bench, accuracy -------------------------------------------------------------------------------------


def test_serve_passes_its_options_on_and_exits_with_the_servers_code(monkeypatch, run):
    calls = []
    monkeypatch.setattr("headway.server.serve.serve", lambda *args: calls.append(args) or 3)

    def settings(*options):
        calls.clear()
        assert run("serve", "some/model", *options) == (3, "", "")
        ((config, server),) = calls
        assert config == EngineConfig(model="some/model")
        return server

    assert settings() == ServerSettings()
    options = ["--host", "0.0.0.0", "--port", 0, "--shutdown-grace", 2, "--access-log"]
    assert settings(*options) == ServerSettings(host="0.0.0.0", port=0, shutdown_grace=2.0, access_log=True)
    assert settings("--enable-admin-api") == ServerSettings(admin_api=True)
    trusted = ServerSettings(chat_template="rag", trust_request_chat_template=True)
    assert settings("--chat-template", "rag", "--trust-request-chat-template") == trusted
    assert settings("--escape-special-tokens") == ServerSettings(escape_special_tokens=True)
    quiet = ServerSettings(log_format="json", quiet_paths=("/health", "/metrics"), uvicorn_log_level="error")
    named = ["--log-format", "json", "--uvicorn-log-level", "error"]
    assert settings(*named, "--disable-access-log-for-endpoints", "/health,/metrics") == quiet
    assert settings("--log-level", "WARNING", "--disable-log-stats") == ServerSettings(
        log_level="warning", log_stats=False
    )
    doors = Doors(root_path="/llm", docs=False, allowed_origins=("https://a",), allow_credentials=True)
    named = ["--root-path", "/llm", "--disable-fastapi-docs", "--allow-credentials"]
    assert settings(*named, "--allowed-origins", '["https://a"]') == ServerSettings(doors=doors)


@pytest.mark.parametrize("command", ["bench", "accuracy"])
def test_what_other_packages_bring_shows_its_own_help(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"headway {command}" in out


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "there is no prompt in standard input"),
        (["generate", "x", "--file", "/no/such/file"], "/no/such/file"),
        (["generate", "x", "--model", "/no/such/model"], "'/no/such/model' does not exist"),
        (["generate", "x", "--top-p", "3"], "top_p must be in (0, 1], got 3.0"),
        (["generate", "x", "-n", "0"], "n must be in [1, 128], got 0"),
        (["generate", "x", "--max-tokens=-1"], "max_tokens must be at least 0, got -1"),
        (["generate", "x", "--max-tokens", "many"], "--max-tokens"),
        (["generate", "x", "--scheduler", "v7"], "v7"),
        (["generate", "x", "--reserve", "much"], "much"),
        (["generate", "x", "--victim", "first"], "first"),
        (["generate", "x", "--hold-timeout", "0"], "hold_timeout must be above 0 seconds, got 0.0"),
        (["doctor", "nowhere"], "'nowhere' is no URL of a server"),
        (["doctor", "a", "b"], "b"),
        (["generate", "x", "--kv-cache-memory-gb", "0"], "kv_cache_memory_gb must be above 0, got 0.0"),
        (["generate", "x", "--nonsense"], "--nonsense"),
        (["chat", "./a-model-that-is-not-there"], "'./a-model-that-is-not-there' does not exist"),
        (["chat", "a/model", "more"], "more"),
        (["chat", "https://hub.example/Org/Name"], "is a URL; name a local folder or a hub id, Org/Name for instance"),
        (["chat", "one", "--model", "two"], "the model is named twice: one and two"),
        (["chat", "--pipeline-parallel-size", "2"], "No such option: --pipeline-parallel-size"),
        (["chat", "--max-tokns", "2"], "(did you mean --max-tokens?)"),
        (["nonsense"], "nonsense"),
        (["bench", "--nonsense"], "--nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("headway: ")
    assert message in err


def test_a_prompt_that_is_too_long_is_named_with_the_limit(run, model):
    code, out, err = run("generate", "ok", "x" * MAX_MODEL_LEN, "--model", model)
    assert (code, out) == (2, "")
    assert err.startswith(f"headway: prompt 1: This model's maximum context length is {MAX_MODEL_LEN} tokens")
    assert len(err.splitlines()) == 1


def test_at_a_terminal_generate_does_not_wait_for_prompts(run, stdin):
    stdin("", terminal=True)
    code, _, err = run("generate")
    assert (code, err) == (2, "headway: there is no prompt: write one after the command, or name a --file\n")


def test_prompts_that_are_not_utf8_are_refused(run, tmp_path):
    (tmp_path / "prompts").write_bytes(b"\xff\xfe\n")
    code, _, err = run("generate", "--file", tmp_path / "prompts")
    assert code == 2
    assert "not UTF-8" in err
    assert len(err.splitlines()) == 1


# The model that comes with Headway --------------------------------------------------------------------------


def test_without_a_model_the_embedded_one_answers():
    command = [sys.executable, "-m", "headway.cli", "generate", "12+34=", "--temperature", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "46\n")


# The program ------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_version_says_which(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("generate", "chat", "serve", "doctor", "bench", "accuracy"):
        assert command in out
    assert run("--version") == (0, f"headway {headway.__version__}\n", "")


def test_without_a_command_there_is_help(run):
    code, out, err = run()
    assert "generate" in out
    assert err == ""
    assert code == 2


def test_help_is_quick_to_load():
    program = "import sys, headway.cli; print({'torch', 'transformers', 'fastapi'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"


def test_a_reader_that_leaves_early_is_no_error(model):
    program = f"""
import sys, pytest
from tests.echo_model import use_echo_model
from headway.cli import main
use_echo_model(pytest.MonkeyPatch())
sys.exit(main(["generate", *["x" * 200] * 600, "--model", {model!r}]))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()
