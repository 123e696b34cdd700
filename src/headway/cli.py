"""The command line: `headway generate | chat | serve | doctor | simtest | bench | accuracy`.

Bad input ends with one line on standard error and exit code 2, an engine that fails with code 1. Each command imports
its modules when it runs, so that `headway --help` is quick.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headway import __version__
from headway.commands import accuracy, chat, doctor, generate, simtest
from headway.commands.options import ChatTemplateOption, takes_model_and_engine
from headway.config import EngineConfig
from headway.errors import EngineDeadError

logger = logging.getLogger(__name__)

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit codes

# The module of click's usage errors depends on the version of typer. This is their common base in every version.
_UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="headway",
    help="Serve language models with a scheduler that takes no locks.",
    epilog="Without a model, commands use the small model that comes with Headway.",
    no_args_is_help=True,
    add_completion=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default that of the process. Returns the exit code."""
    _open_standard_files()
    try:
        code = app(arguments, prog_name="headway", standalone_mode=False)
    except _UsageError as error:
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


app.command("generate")(generate.command)
app.command("chat")(chat.command)
app.command("doctor")(doctor.command)
app.command("simtest")(simtest.command)
app.command("accuracy")(accuracy.command)


@app.command()
@takes_model_and_engine
def serve(
    config: EngineConfig,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes any free port.")] = 8000,
    shutdown_grace: Annotated[
        float, typer.Option(help="Seconds for running requests to end after SIGTERM or Ctrl-C.")
    ] = 10.0,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every HTTP request.")] = False,
    admin_api: Annotated[
        bool,
        typer.Option(
            "--enable-admin-api",
            help="Serve /pause, /resume, /is_paused and /reset_prefix_cache, and /debug/ownership to other hosts. "
            "Every client can then stop the server.",
        ),
    ] = False,
    engine_restarts: Annotated[
        int,
        typer.Option(
            help="How often within ten minutes an engine that died is started again; 0: the server ends with code 1."
        ),
    ] = 0,
    chat_template: ChatTemplateOption = None,
    trust_request_chat_template: Annotated[
        bool,
        typer.Option(
            "--trust-request-chat-template",
            help="Accept chat templates in requests: a template is a program that may use any time and memory.",
        ),
    ] = False,
    escape_special_tokens: Annotated[
        bool,
        typer.Option(
            "--escape-special-tokens",
            help="Part special tokens that chat messages spell (< |im_end|>), so that no message can end its turn.",
        ),
    ] = False,
    prefill: Annotated[
        list[str],
        typer.Option(
            metavar="URL",
            help="With --role decode: a prefill engine that computes prompts for this one; may be given several times.",
        ),
    ] = [],  # noqa: B006  typer makes a new list for each call
    max_local_prefill_tokens: Annotated[
        int, typer.Option(min=0, help="With --prefill: prompts of up to so many tokens are computed here.")
    ] = 64,
    strict_fields: Annotated[
        bool,
        typer.Option("--strict-fields", help="Refuse request fields that are not known, instead of ignoring them."),
    ] = False,
) -> None:
    """Serve a model by OpenAI's HTTP API."""
    from headway.server.serve import serve

    options: dict[str, Any] = {"shutdown_grace": shutdown_grace, "access_log": access_log, "admin_api": admin_api}
    options |= {"engine_restarts": engine_restarts, "strict_fields": strict_fields}
    options |= {"prefill": prefill, "max_local_prefill_tokens": max_local_prefill_tokens}
    templates: dict[str, Any] = {
        "chat_template": chat_template,
        "trust_request_chat_template": trust_request_chat_template,
        "escape_special_tokens": escape_special_tokens,
    }
    raise typer.Exit(serve(config, host, port, **options, **templates))


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
    sys.exit(main())
