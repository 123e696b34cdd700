"""`headway complete`: texts that a running server goes on with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated, Any

import typer

from headway.commands.options import ModelArgument
from headway.commands.remote_options import AnswerError, ApiKeyOption, CaCertsOption, http_options
from headway.commands.server_urls import server_url

EXAMPLES = (
    "headway complete -q '12+34='",
    "headway complete --url 10.0.0.5:8000 --max-tokens 64 < prompts.txt",
    "HEADWAY_API_KEY=sk-1 headway complete my-model --url https://llm.example/v1",
)


def command(
    url: Annotated[
        str, typer.Option(metavar="URL", help="Address of the server, HOST:PORT for instance.")
    ] = "http://localhost:8000/v1",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "--model-name",
            metavar="NAME",
            help="The model to ask for.",
            show_default="the first that the server names",
        ),
    ] = None,
    model_argument: ModelArgument = None,  # noqa: ARG001  `Command` puts it into `model`
    api_key: ApiKeyOption = None,
    ssl_ca_certs: CaCertsOption = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="The most tokens of an answer.", show_default="the server's; of Headway and vLLM: 16"),
    ] = None,
    quick: Annotated[
        str | None, typer.Option("--quick", "-q", metavar="PROMPT", help="Answer this prompt, and leave.")
    ] = None,
) -> None:
    """Have a running server complete prompts.

    Prompts are typed, or piped in one a line. `headway generate` does the same
    with a model on this machine, and without a server.
    """
    from headway.commands.remote_model import RemoteModel

    sampling: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    with RemoteModel(server_url(url, "/v1"), model, http_options(api_key, ssl_ca_certs)) as remote:
        for prompt in [quick] if quick is not None else _prompts(remote.name):
            try:
                with closing(remote.stream_completion(prompt, sampling)) as pieces:
                    for piece in pieces:
                        print(piece, end="", flush=True)
            except AnswerError as error:
                print(f"\nheadway: {error}", file=sys.stderr)
                raise typer.Exit(1) from None
            print(flush=True)


def _prompts(model: str) -> Iterator[str]:
    """The prompts that the user types or pipes in, without blank lines."""
    if sys.stdin.isatty():
        typer.secho(f"{model}: Ctrl-D leaves", dim=True)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line
