"""The command line: `headway generate | chat | complete | serve | pd | top | doctor | collect-env | ...`.

Bad input ends with one line on standard error and exit code 2, an engine that fails with code 1. Each command imports
its modules when it runs, so that `headway --help` is quick.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from headway import __version__
from headway.commands import (
    accuracy,
    chat,
    collect_env,
    complete,
    doctor,
    generate,
    pd,
    run_batch,
    serve,
    simtest,
    top,
)
from headway.commands.command import Command, UsageError
from headway.commands.laboratory import LaboratoryGroup
from headway.commands.vllm_line import VllmCommand
from headway.errors import EngineDeadError
from headway.exit import exit_process

logger = logging.getLogger(__name__)

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit codes
EXIT_CODES: Mapping[int, str] = {
    0: "It did what it was asked; a server was asked to stop.",
    FAILED: "The engine or a request failed; `doctor`, `simtest`, `accuracy` and the benchmarks found something wrong.",
    BAD_INPUT: "It cannot be done as asked: one line on standard error names the value, the limit and the remedy.",
    INTERRUPTED: "Ctrl-C ended it.",
}


class _Commands(LaboratoryGroup):
    entry_point_group = "headway.commands"


app = typer.Typer(
    cls=_Commands,
    name="headway",
    help="Serve language models with a scheduler that takes no locks.",
    epilog="Without a model, commands use the small model that comes with Headway.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default that of the process. Returns the exit code."""
    _open_standard_files()
    try:
        code = app(arguments, prog_name="headway", standalone_mode=False)
    except UsageError as error:
        return _complain(error.format_message(), BAD_INPUT)
    except BrokenPipeError:  # the reader of our output has gone; the last flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, OSError) as error:
        logger.debug("refused", exc_info=error)
        return _complain(str(error), BAD_INPUT)
    except EngineDeadError as error:
        return _complain(str(error), FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _open_standard_files() -> None:
    """Lead standard input, output and error nowhere where the caller has closed them: a socket or a file that gets
    their number would be taken for them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115  kept open


def _complain(message: str, code: int) -> int:
    if message:  # click gives an empty message after printing the help
        print("headway:", " ".join(message.split()), file=sys.stderr)
    return code


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"headway {__version__}")
        raise typer.Exit


@app.callback()
def _headway(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _name, _module, _kind in (
    ("generate", generate, Command),
    ("chat", chat, Command),
    ("complete", complete, Command),
    ("serve", serve, VllmCommand),
    ("pd", pd, VllmCommand),
    ("run-batch", run_batch, VllmCommand),
    ("top", top, Command),
    ("doctor", doctor, Command),
    ("collect-env", collect_env, Command),
    ("simtest", simtest, Command),
    ("accuracy", accuracy, Command),
):
    app.command(_name, cls=_kind, epilog="\n".join(_module.EXAMPLES))(_module.command)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "allow_interspersed_args": False,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def bench(context: typer.Context) -> None:
    """Measure a server under load, tokens per second, or the scheduler's step."""
    from headway.bench import app as benchmarks

    # The app of the benchmarks gets the rest of the line, --help included.
    raise typer.Exit(benchmarks(context.args, prog_name=context.command_path, standalone_mode=False) or 0)


if __name__ == "__main__":
    exit_process(main())
