"""`headway serve`: a model by OpenAI's HTTP API."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Annotated

import typer

from headway import __version__
from headway.commands.options import takes_model_and_engine
from headway.commands.server_options import takes_server
from headway.config import EngineConfig
from headway.logs import log_to_standard_error
from headway.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_PROCESSES = "Several processes"

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
    api_server_count: Annotated[
        int,
        typer.Option(
            rich_help_panel=_PROCESSES,
            help="API processes that share the port: for more text per second than one process can make.",
        ),
    ] = 1,
    data_parallel_size: Annotated[
        int,
        typer.Option(
            rich_help_panel=_PROCESSES,
            help="Engines that share the requests, each with the whole model, and on GPUs with devices of its own. An "
            "engine that dies more often than --engine-restarts allows is left out; the last one ends the server.",
        ),
    ] = 1,
) -> None:
    """Serve a model by OpenAI's HTTP API."""
    server = replace(
        server,
        prefill=tuple(prefill),
        prefill_api_key=prefill_api_key or server.prefill_api_key,
        api_server_count=api_server_count,
        data_parallel_size=data_parallel_size,
    )
    log_to_standard_error(server.log_format, server.log_level)
    logger.info("Headway %s starts: model %s", __version__, config.model or "of its own (no MODEL was named)")
    # Imported here: each takes a second.
    if server.api_server_count > 1 or server.data_parallel_size > 1:
        from headway.cluster.supervisor import serve_supervised

        raise typer.Exit(serve_supervised(config, server))
    from headway.server.serve import serve

    raise typer.Exit(serve(config, server))
