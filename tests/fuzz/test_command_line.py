"""Random options: a command line never ends in a traceback."""

from __future__ import annotations

import typer.main
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cli import app, main

VALUES = st.sampled_from(["-1", "0", "1", "nan", "inf", "1e309", "", "x", "{}", "[1", "9" * 30, "é\ud800", "/dev/null"])
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SHORT = ["generate", "chat", "serve"]  # commands that end at once where there is no such model


def options(command: str) -> list[tuple[str, bool]]:
    """(name, whether it is a flag) of the options of a command, but for the model."""
    known = COMMANDS[command].params
    named = [(param.opts[0], bool(param.is_flag)) for param in known if param.param_type_name == "option"]
    return [(name, flag) for name, flag in named if name not in ("--model", "--help")]


@settings(max_examples=settings.default.max_examples // 4)
@given(data=st.data())
def test_no_command_line_ends_in_a_traceback(data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(SHORT), label="command")
    line = [command]
    for name, flag in data.draw(st.lists(st.sampled_from(options(command)), max_size=4), label="options"):
        line += [name] if flag else [name, data.draw(VALUES, label=name)]
    model = ["/no/such/model"] if command != "generate" else ["--model", "/no/such/model", "hi"]
    assert main([*line, *model]) in (1, 2)
