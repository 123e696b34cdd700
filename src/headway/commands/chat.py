"""`headway chat`: a conversation, typed at the terminal or piped in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import typer

from headway.commands.options import ChatTemplateOption, load_llm, takes_engine, takes_sampling
from headway.commands.remote_options import (
    AnswerError,
    ApiKeyOption,
    CaCertsOption,
    ModelNameOption,
    http_options,
)
from headway.config import EngineConfig

Message = dict[str, str]
Stream = Callable[[list[Message]], Generator[str]]  # the pieces of an answer; raises AnswerError, and ValueError

_SERVER = "A running server"


@takes_engine
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
            help="Talk with the model of a running server: http://localhost:8000/v1.",
            show_default="a model in this process",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    model_name: ModelNameOption = None,
    api_key: ApiKeyOption = None,
    ssl_ca_certs: CaCertsOption = None,
) -> None:
    """Talk with a model.

    /new starts a new conversation. /exit, or the end of the input, leaves.
    Ctrl-C ends an answer. Lines piped in are answered in order, as one conversation.
    """
    opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    if url is None:
        model = _local(config, given, chat_template)
    elif config != EngineConfig() or chat_template is not None:
        raise ValueError("--url names a server, which has its model: options of the engine do not go with it")
    else:
        model = _remote(url, given, model_name, http_options(api_key, ssl_ca_certs))
    with model as (name, stream):
        messages = list(opening)
        for line in [quick] if quick is not None else _lines_said(name):
            if line == "/exit":
                break
            if line == "/new":
                messages = list(opening)
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


def _lines_said(model: str) -> Iterator[str]:
    """The lines that the user types or pipes in, without blank lines."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives input() a history and the arrow keys)

        typer.secho(f"{model}: /new starts over, /exit leaves", dim=True)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()


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
