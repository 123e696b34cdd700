"""`headway chat`: a conversation, typed at the terminal or piped in."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import typer

from headway.commands.options import ChatTemplateOption, load_llm, takes_model_and_engine, takes_sampling
from headway.commands.remote_options import (
    AnswerError,
    ApiKeyOption,
    CaCertsOption,
    ModelNameOption,
    http_options,
)
from headway.commands.server_urls import server_url
from headway.config import EngineConfig

Message = dict[str, str]
Stream = Callable[[list[Message]], Generator[str]]  # the pieces of an answer; raises AnswerError, and ValueError

EXAMPLES = (
    "headway chat",
    "headway chat Qwen/Qwen3-0.6B --system 'Answer briefly.'",
    "headway chat --url localhost:8000 -q 'sort cab='",
)
_COMMANDS = {
    "/new": "start a new conversation",
    "/help": "show these lines",
    "/bye": "leave, as /exit and the end of the input do",
}
_LEAVE = ("/bye", "/exit")
OF_OWN_MODEL = ("12+34=", "sort cab=", "k9 the Q1 ? k")
_COMMAND = re.compile(r"/[A-Za-z?]\w*")  # and not /etc/hosts, nor a sentence


@takes_model_and_engine
@takes_sampling
def command(
    config: EngineConfig,
    given: dict[str, Any],
    system: Annotated[
        str | None,
        typer.Option(
            "--system", "--system-prompt", help="System message: text that the model reads first.", show_default=False
        ),
    ] = None,
    chat_template: ChatTemplateOption = None,
    quick: Annotated[
        str | None, typer.Option("--quick", "-q", metavar="MESSAGE", help="Answer this message, and leave.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Talk with the model of a running server: HOST:PORT, or http://HOST:PORT/v1.",
            show_default="a model in this process",
        ),
    ] = None,
    model_name: ModelNameOption = None,
    api_key: ApiKeyOption = None,
    ssl_ca_certs: CaCertsOption = None,
) -> None:
    """Talk with a model.

    /help lists the commands of a conversation: /new starts another, /bye leaves.
    Ctrl-C ends an answer, and leaves if it comes twice. A line that ends with \\
    goes on in the next. Lines piped in are answered as one conversation.
    """
    opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    if url is None:
        model = _local(config, given, chat_template)
    elif replace(config, model=None) != EngineConfig() or chat_template is not None:
        raise ValueError("--url names a server, which has its model: options of the engine do not go with it")
    else:
        if None not in (config.model, model_name) and config.model != model_name:
            raise ValueError(f"the model is named twice: {config.model} and {model_name}")
        name = model_name or config.model
        model = _remote(server_url(url, "/v1"), given, name, http_options(api_key, ssl_ca_certs))
    with model as (name, stream):
        messages = list(opening)
        tries = OF_OWN_MODEL if url is None and config.model is None else ()
        for line in [quick] if quick is not None else _lines_said(name, tries):
            if quick is None and _COMMAND.fullmatch(line):
                if line in _LEAVE:
                    break
                if line == "/new":
                    messages = list(opening)
                else:
                    _tell_commands(line)
                continue
            question = {"role": "user", "content": line}
            answer = _speak(stream, [*messages, question])
            if answer is not None:
                messages += [question, {"role": "assistant", "content": answer}]


@contextmanager
def _local(config: EngineConfig, given: dict[str, Any], chat_template: str | None) -> Iterator[tuple[str, Stream]]:
    """The name of a model in this process, and a function that streams its answers."""
    with load_llm(config, chat_template) as llm:
        sampling = replace(llm.default_sampling_params(), **given)
        llm.render_chat([{"role": "user", "content": "Hello"}])  # without a chat template, say so now

        def stream(messages: list[Message]) -> Generator[str]:
            with closing(llm.stream_chat(messages, sampling)) as deltas:
                for delta in deltas:
                    yield delta.text
                    if delta.error is not None:
                        raise AnswerError(delta.error)

        yield llm.files.name, stream


@contextmanager
def _remote(
    url: str, given: dict[str, Any], model_name: str | None, options: dict[str, Any]
) -> Iterator[tuple[str, Stream]]:
    """The same of a model behind a server."""
    from headway.commands.remote_model import RemoteModel

    sampling = {name: value for name, value in given.items() if value is not False and value != []}
    with RemoteModel(url, model_name, options) as model:
        yield model.name, partial(model.stream_chat, sampling=sampling)


def _tell_commands(line: str) -> None:
    if line != "/help":
        print(f"headway: there is no {line}; /help lists the commands", file=sys.stderr)
        return
    for name, text in _COMMANDS.items():
        print(f"{name:<6} {text}", file=sys.stderr)
    print("Ctrl-C ends an answer; a line that ends with \\ goes on in the next", file=sys.stderr)


def _lines_said(model: str, tries: Sequence[str]) -> Iterator[str]:
    """The lines that the user types or pipes in, without blank lines. tries: questions to show first."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        import readline  # noqa: F401  (gives input() a history and the arrow keys)

        typer.secho(f"{model}: /help lists the commands, /bye leaves", dim=True)
        if tries:
            typer.secho("This small model does sums, copy, sort, reverse and recall. Try:", dim=True)
            typer.secho("".join(f"  {question}\n" for question in tries), dim=True, nl=False)
    interrupted = False
    begun: list[str] = []  # the lines so far of a message that goes on
    while True:
        try:
            line = input(("... " if begun else "> ") if at_terminal else "")
        except EOFError:
            if begun:
                yield "\n".join(begun)
            return
        except KeyboardInterrupt:
            if not at_terminal or interrupted:
                raise
            interrupted, begun = True, []
            print("\nCtrl-C again or /bye leaves", file=sys.stderr)
            continue
        interrupted = False
        if at_terminal and line.endswith("\\"):
            begun.append(line.removesuffix("\\"))
            continue
        whole = "\n".join([*begun, line]).strip()
        begun = []
        if whole:
            yield whole


def _speak(stream: Stream, messages: list[Message]) -> str | None:
    """Print the answer as it arrives, and return it; None if it was cut short at a terminal.

    Without a terminal, an answer that is cut short ends the command.
    """
    at_terminal = sys.stdin.isatty()
    answer = ""
    try:
        with closing(stream(messages)) as pieces:
            for piece in pieces:
                answer += piece
                print(piece, end="", flush=True)
    except AnswerError as error:
        print(f"\nheadway: {error}", file=sys.stderr)
        if not at_terminal:
            raise typer.Exit(1) from None
        return None
    except (KeyboardInterrupt, ValueError) as error:
        if not at_terminal:
            raise
        print(f"\nheadway: {error}" if str(error) else "", file=sys.stderr)
        return None
    print(flush=True)
    return answer
