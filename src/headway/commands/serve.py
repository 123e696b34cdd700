"""`headway serve`: a model by OpenAI's HTTP API."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from headway.commands.options import takes_model_and_engine
from headway.commands.server_options import takes_server
from headway.config import EngineConfig
from headway.server.settings import ServerSettings

EXAMPLES = (
    "headway serve",
    "headway serve Qwen/Qwen3-0.6B --port 9000 --max-model-len 4096",
    "HEADWAY_API_KEY=sk-1 headway serve --model ./my-model --host 0.0.0.0",
)


@takes_model_and_engine
@takes_server
def command(
    config: EngineConfig,
    server: ServerSettings,
    prefill: Annotated[
        list[str],
        typer.Option(
            metavar="URL",
            rich_help_panel="Prefill and decode apart",
            help="With --role decode: a prefill engine that computes prompts for this one; may be given several times.",
        ),
    ] = [],  # noqa: B006  typer makes a new list for each call
    prefill_api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            rich_help_panel="Prefill and decode apart",
            help="Key for the prefill engines; better in HEADWAY_PREFILL_API_KEY, since ps shows it.",
            show_default="the first key of this server without a tenant",
        ),
    ] = None,
) -> None:
    """Serve a model by OpenAI's HTTP API."""
    from headway.server.serve import serve

    server = replace(server, prefill=tuple(prefill), prefill_api_key=prefill_api_key or server.prefill_api_key)
    raise typer.Exit(serve(config, server))
