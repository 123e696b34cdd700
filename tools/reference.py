"""Writes docs/reference/ from the code: the command line, variables of the environment, errors, metrics.

    python tools/reference.py             compare: exit status 1, and the names of the pages that differ
    python tools/reference.py --write     write the pages

The metrics are those of a server on the embedded model with a simulated device.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from prometheus_client.parser import text_string_to_metric_families

from headway.cli import EXIT_CODES, app
from headway.client.engine_client import EngineClient
from headway.commands.environment import SPECIAL
from headway.config import EngineConfig
from headway.server.error_codes import ERROR_CODES
from headway.server.service import Service

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTE = "<!-- Written by tools/reference.py from the code. Do not edit it here. -->"
_OWN, _ALIAS = "headway:", "vllm:"


def command_line() -> str:
    """The page of all commands of the package, with their arguments and options."""
    group: Any = typer.main.get_command(app)
    lines = ["# Commands", "", NOTE, "", "`headway COMMAND --help-all` says the same in the terminal.", ""]
    for name, command in group.commands.items():
        if not command.params:
            continue  # `bench` has a command line of its own
        lines += [f"## headway {name}", "", *_sentences(command.help), ""]
        lines += _options(command)
    return "\n".join(lines)


def _sentences(text: str) -> Iterator[str]:
    """The paragraphs of a help text."""
    for number, paragraph in enumerate((text or "").strip().split("\n\n")):
        if number:
            yield ""
        yield " ".join(paragraph.split())


def _options(command: Any) -> Iterator[str]:
    context = command.make_context(command.name, [], resilient_parsing=True)
    for panel, records in command.panels(context).items():
        yield f"### {panel}"
        yield ""
        yield "| | |"
        yield "|---|---|"
        for flags, text in records:
            yield f"| `{_cell(flags)}` | {_cell(text)} |"
        yield ""
    yield from ("```sh", *command.epilog.splitlines(), "```", "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def variables() -> str:
    """The page of all variables of the environment."""
    group: Any = typer.main.get_command(app)
    rows: dict[str, tuple[str, list[str]]] = {}
    for name, command in group.commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.envvar and not parameter.hidden:
                flag = max(parameter.opts, key=len)
                rows.setdefault(parameter.envvar, (flag, []))[1].append(name)
    lines = [
        "# Environment",
        "",
        NOTE,
        "",
        "Each option of a command has a variable: `HEADWAY_` and the name of the option in capitals, with `_` for `-`. "
        "What the command line says goes first, then a file of `--config`, then the variable, then the default. A flag "
        "without a value takes 1 or 0. An option that may be given several times takes values with blanks between "
        "them. A variable that is empty counts as absent. A value that cannot be is refused in one line, with the name "
        "of the variable.",
        "",
        "In Kubernetes, a service that is called `headway` sets `HEADWAY_PORT=tcp://...` in all pods beside it: call "
        "it otherwise, or set `enableServiceLinks: false`.",
        "",
        "## Variables of their own",
        "",
        "| | |",
        "|---|---|",
        *(f"| `{name}` | {_cell(text)} |" for name, text in SPECIAL.items()),
        "",
        "## Variables of options",
        "",
        "| variable | option | commands |",
        "|---|---|---|",
        *(f"| `{name}` | `{flag}` | {', '.join(commands)} |" for name, (flag, commands) in sorted(rows.items())),
    ]
    return "\n".join([*lines, ""])


def errors() -> str:
    """The page of exit codes, and of the codes in error bodies."""
    lines = [
        "# Errors",
        "",
        NOTE,
        "",
        "## Exit codes of commands",
        "",
        "| | |",
        "|---|---|",
        *(f"| {code} | {_cell(text)} |" for code, text in EXIT_CODES.items()),
        "",
        "## Errors of the API",
        "",
        'The body of an error is `{"error": {"message", "type", "param", "code"}}`; below `/v1/messages` it has '
        "Anthropic's form. A stream that has begun ends with such a body as its last event. 400 without a code: a "
        "field is wrong, which `param` names; 408, 413 and 415: the body came too slowly, is too large, or is no JSON.",
        "",
        "| status | code | it means | do |",
        "|---|---|---|---|",
        *(f"| {code.status} | `{name}` | {code.meaning} | {code.remedy} |" for name, code in ERROR_CODES.items()),
    ]
    return "\n".join([*lines, ""])


def metrics() -> str:
    """The page of all families that /metrics has."""
    page = asyncio.run(_page())
    lines = [
        "# Metrics",
        "",
        NOTE,
        "",
        "`/metrics` has each family of Headway's twice: as `headway:NAME`, and as `vllm:NAME`, so that dashboards and "
        "autoscalers made for vLLM work. The samples of a counter are called NAME_total. The label "
        "`model_name` is the name of the model, `engine` is always 0.",
        "",
        "| name | kind | more labels | what it is |",
        "|---|---|---|---|",
    ]
    for family in text_string_to_metric_families(page):
        if family.name.startswith(_ALIAS):
            continue
        labels = {label for sample in family.samples for label in sample.labels} - {"model_name", "engine", "le"}
        more = ", ".join(f"`{label}`" for label in sorted(labels))
        lines.append(f"| `{family.name}` | {family.type} | {more} | {_cell(family.documentation)} |")
    return "\n".join([*lines, ""])


async def _page() -> str:
    client = await EngineClient.start(EngineConfig(), engine_args=["--executor", "simulated"])
    try:
        return Service(client, client.files.name).metrics.page().decode()
    finally:
        await client.shutdown()


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": command_line,
    "environment.md": variables,
    "errors.md": errors,
    "metrics.md": metrics,
}


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them. Returns the exit status."""
    different = []
    for name, make in PAGES.items():
        path, text = FOLDER / name, make()
        if "--write" in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            different.append(path.name)
    if different:
        print(f"docs/reference: {', '.join(different)} are not what the code says: tools/reference.py --write")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
