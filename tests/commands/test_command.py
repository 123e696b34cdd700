"""What every command shares: help, the model's name, variables of the environment, one line for what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main

from headway import cli
from headway.bench import app as benchmarks
from headway.commands import chat, environment
from headway.commands.server_urls import server_url
from headway.config import EngineConfig
from headway.default_model import PATH
from headway.server.settings import ServerSettings

GROUP: Any = typer.main.get_command(cli.app)
OWN = [(name,) for name in GROUP.commands if name != "bench"]
BENCHMARKS: Any = typer.main.get_command(benchmarks)
COMMANDS = [*OWN, *(("bench", name) for name in BENCHMARKS.commands)]


def command_of(names: tuple[str, ...]) -> Any:
    return (GROUP if len(names) == 1 else BENCHMARKS).commands[names[-1]]


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("HEADWAY_MODEL", raising=False)


# Help -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_help_fits_80_columns_names_options_whole_and_gives_three_examples(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*names, "--help-all" if command_of(names)._has_more() else "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    words = set(text.replace(",", " ").split())
    options = [param for param in command_of(names).params if param.param_type_name == "option" and not param.hidden]
    assert [name for param in options for name in param.opts if name not in words] == []
    examples = text.split("Examples:\n")[1].splitlines()
    assert len(examples) == 3
    assert all(f"headway {' '.join(names)}" in example for example in examples)


@pytest.mark.parametrize("names", [(), ("bench",), *COMMANDS], ids=" ".join)
def test_h_is_short_for_help(names: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*names, "--help"]) == 0
    text = capsys.readouterr().out
    assert cli.main([*names, "-h"]) == 0
    assert capsys.readouterr().out == text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("names", [("serve",), ("pd",), ("generate",), ("chat",)], ids=" ".join)
def test_help_is_the_common_options_and_says_where_the_rest_is(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*names, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--model" in text and "--max-model-len" in text and "--block-size" not in text
    assert "more options with --help-all" in text
    assert len(text.splitlines()) < 70


def test_vllms_help_of_a_part_is_all_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--help=all"]) == 0
    assert "--block-size" in capsys.readouterr().out


def test_the_examples_are_lines_that_the_commands_take(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in COMMANDS:
        command = command_of(names)
        for line in command.epilog.splitlines():
            words = _words(line)
            assert words[: len(names) + 1] == ["headway", *names]
            command.make_context(names[-1], words[len(names) + 1 :])


def _words(line: str) -> list[str]:
    """The words of one command, without variables before it and files that the shell opens."""
    import shlex

    words = shlex.split(line)
    while "=" in words[0]:
        words.pop(0)
    end = next((place for place, word in enumerate(words) if word in ("<", ">")), len(words))
    return words[:end]


@pytest.mark.parametrize("command, meant", [("serve", "HEADWAY_HOST"), ("complete", "HEADWAY_MAX_TOKENS")])
def test_a_misspelt_variable_is_named_and_the_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, meant: str
) -> None:
    monkeypatch.setenv(f"{meant}E", "1")
    monkeypatch.setenv("HEADWAY_ADAPTERS", "1")  # of others, and like no option
    command_of((command,)).make_context(command, [])
    assert capsys.readouterr().err == f"headway: {meant}E in the environment is not read: did you mean {meant}?\n"


def test_a_variable_of_another_command_is_not_misspelt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADWAY_API_KEY_FILE", "keys")  # of `serve`; `doctor` has HEADWAY_API_KEY
    assert cli.main(["doctor", "http://127.0.0.1:1"]) != 0
    assert "HEADWAY_API_KEY_FILE" not in capsys.readouterr().err


# The model --------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[EngineConfig]:
    configs: list[EngineConfig] = []

    def stop_here(config: EngineConfig, *_args: Any, **_kwargs: Any) -> Any:
        configs.append(config)
        raise ValueError("seen")

    monkeypatch.setattr("headway.llm.ModelFiles.resolve", stop_here)
    monkeypatch.setattr("headway.server.serve.serve", stop_here)
    monkeypatch.setattr("headway.cluster.prefill_decode.serve_group", stop_here)
    return configs


@pytest.mark.parametrize("command", ["serve", "pd", "chat"])
@pytest.mark.parametrize("words", [["m"], ["--model", "m"], ["--model=m"], ["m", "--model", "m"]], ids=" ".join)
def test_a_model_is_named_by_the_first_word_or_by_model(
    seen: list[EngineConfig], command: str, words: list[str]
) -> None:
    assert cli.main([command, *words]) == 2
    assert [config.model for config in seen] == ["m"]


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_the_command_line_goes_before_the_environment(
    seen: list[EngineConfig], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWAY_MODEL", "of/environment")
    for words in ([], ["m"], ["--model", "m"]):
        cli.main([command, *words])
    assert [config.model for config in seen] == ["of/environment", "m", "m"]


@pytest.mark.parametrize(
    "prompts",
    [[str(PATH)], ["hi", str(PATH)], ["Qwen/Qwen3-0.6B", "hi"], ["./tiny", "hi"], ["tiny-random:llama", "hi"]],
)
def test_a_model_in_the_place_of_a_prompt_is_refused_with_the_right_line(
    prompts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", *prompts]) == 2
    error = capsys.readouterr().err
    assert "headway generate --model " in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "prompts", [["and/or"], ["1/2", "3/4"], ["copy a/b=", "c"], ["/", "what?"], ["\0", "a" * 9000]]
)
def test_prompts_that_only_resemble_a_model_are_answered(
    seen: list[EngineConfig], prompts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["generate", *prompts])
    assert capsys.readouterr().err == "headway: seen\n"


# The environment --------------------------------------------------------------------------------------------


def test_every_option_has_a_variable_which_gives_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("headway.server.serve.serve", lambda *args: given.append(args) or 0)
    monkeypatch.setenv("HEADWAY_PORT", "9001")
    monkeypatch.setenv("HEADWAY_MAX_NUM_SEQS", "7")
    monkeypatch.setenv("HEADWAY_NO_ENABLE_PREFIX_CACHING", "1")
    monkeypatch.setenv("HEADWAY_MODEL_ALIAS", "a b")
    assert cli.main(["serve", "--max-num-seqs", "8"]) == 0
    assert given == [
        (
            EngineConfig(max_num_seqs=8, enable_prefix_caching=False),
            ServerSettings(port=9001, model_aliases=("a", "b")),
        )
    ]
    for names in OWN:
        for param in command_of(names).params:
            if param.param_type_name == "option":
                assert param.envvar is not None or f"HEADWAY_{param.name.upper()}" in environment.SPECIAL


@pytest.mark.parametrize(
    ("value", "said"),
    [("many", "HEADWAY_MAX_MODEL_LEN=many in the environment, for --max-model-len"), ("1", "got 1 (from the environm")],
)
def test_a_bad_value_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, said: str
) -> None:
    monkeypatch.setenv("HEADWAY_MAX_MODEL_LEN", value)
    assert cli.main(["generate", "hi"]) == 2
    error = capsys.readouterr().err
    assert said in error and "HEADWAY_MAX_MODEL_LEN" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("blocks", "remedy"), [(1, "give the KV cache more\n"), (10, "max_model_len to at most 144\n")]
)
def test_too_few_blocks_are_refused_with_what_would_do(
    capsys: pytest.CaptureFixture[str], blocks: int, remedy: str
) -> None:
    assert cli.main(["generate", "hi", "--num-blocks", str(blocks)]) == 2
    error = capsys.readouterr().err
    assert "which is too small" in error and error.endswith(remedy) and len(error.splitlines()) == 1


# URLs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        ("10.0.0.5:8000/", "http://10.0.0.5:8000/v1"),
        ("[::1]:8000", "http://[::1]:8000/v1"),
        ("host:80/llm/v1", "http://host:80/llm/v1"),
        ("https://llm.example", "https://llm.example/v1"),
        ("https://llm.example/v1/", "https://llm.example/v1"),
    ],
)
def test_a_server_may_be_named_without_its_scheme(given: str, url: str) -> None:
    assert server_url(given, "/v1") == url


@pytest.mark.parametrize("given", ["", "nowhere", "ftp://host:1", "http://", "http://[::1", "host:99999", "a b:80"])
def test_what_is_no_url_of_a_server_is_refused_with_the_form(given: str) -> None:
    with pytest.raises(ValueError, match=r"is no URL of a server.*HOST:PORT"):
        server_url(given)


@pytest.mark.parametrize("words", [["doctor"], ["top"], ["chat", "-q", "?", "--url"], ["complete", "-q", "?", "--url"]])
def test_every_command_that_asks_a_server_takes_host_and_port(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "127.0.0.1:1"]) == 2
    assert "cannot reach a server at http://127.0.0.1:1" in capsys.readouterr().err


# Chat -------------------------------------------------------------------------------------------------------


class Terminal:
    """Types lines into a chat; KeyboardInterrupt stands for Ctrl-C. said: the messages of each request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lines: list[Any]) -> None:
        self.said: list[list[str]] = []
        self._lines = list(lines)
        monkeypatch.setattr("builtins.input", self._type)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr(chat, "_local", self._model)

    def _type(self, _prompt: str = "") -> str:
        if not self._lines:
            raise EOFError
        line = self._lines.pop(0)
        if line is KeyboardInterrupt:
            raise line
        return str(line)

    def _model(self, *_: Any) -> Any:
        from contextlib import nullcontext

        def stream(messages: list[dict[str, str]]) -> Any:
            self.said.append([message["content"] for message in messages])
            yield "answer"

        return nullcontext(("m", stream))


def test_chat_has_commands_and_says_which(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(monkeypatch, ["/help", "/hlep", "/etc/hosts", "/bye", "never"])
    assert cli.main(["chat"]) == 0
    said = capsys.readouterr()
    assert all(name in said.err for name in ("/new", "/bye", "/exit"))
    assert "there is no /hlep; /help lists the commands" in said.err
    assert terminal.said == [["/etc/hosts"]]


def test_chat_on_the_embedded_model_opens_with_three_questions_that_it_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Terminal(monkeypatch, ["/bye"])
    assert cli.main(["chat"]) == 0
    opening = capsys.readouterr().out
    assert len(chat.OF_OWN_MODEL) == 3 and all(question in opening for question in chat.OF_OWN_MODEL)
    assert cli.main(["chat", "other"]) == 0
    assert chat.OF_OWN_MODEL[0] not in capsys.readouterr().out


def test_the_first_interrupt_at_an_empty_prompt_says_how_to_leave(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(monkeypatch, [KeyboardInterrupt, "hi", KeyboardInterrupt, KeyboardInterrupt, "never"])
    assert cli.main(["chat"]) == 130
    assert capsys.readouterr().err.count("Ctrl-C again or /bye leaves") == 2
    assert terminal.said == [["hi"]]


def test_a_line_that_ends_with_a_backslash_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, ["one\\", "two", "three\\"])
    assert cli.main(["chat"]) == 0
    assert terminal.said == [["one\ntwo"], ["one\ntwo", "answer", "three"]]


def test_the_embedded_model_answers_the_questions_that_it_opens_with() -> None:
    from headway import LLM, SamplingParams

    with LLM() as llm:
        chats = [[{"role": "user", "content": question}] for question in chat.OF_OWN_MODEL]
        outputs = llm.chat(chats, SamplingParams(temperature=0))
    assert [output.outputs[0].text for output in outputs] == ["46", "abc", "k9"]
