"""`headway serve`: a model by OpenAI's HTTP API."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from headway.commands.options import takes_model_and_engine
from headway.commands.server_options import takes_server
from headway.config import EngineConfig


@takes_server
@takes_model_and_engine
def command(
    config: EngineConfig,
    server: dict[str, Any],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes any free port.")] = 8000,
    prefill: Annotated[
        list[str],
        typer.Option(
            metavar="URL",
            help="With --role decode: a prefill engine that computes prompts for this one; may be given several times.",
        ),
    ] = [],  # noqa: B006  typer makes a new list for each call
) -> None:
    """Serve a model by OpenAI's HTTP API."""
    from headway.server.serve import serve

    raise typer.Exit(serve(config, host, port, prefill=prefill, **server))
