"""`headway pd`: prefill and decode engines on one machine, as one server for its clients."""

from __future__ import annotations

from typing import Annotated

import typer

from headway.commands.options import takes_model_and_engine_of_group
from headway.commands.server_options import takes_server
from headway.config import EngineConfig
from headway.server.settings import ServerSettings

EXAMPLES = (
    "headway pd",
    "headway pd Qwen/Qwen3-0.6B --prefill 2 --decode 2",
    "headway pd --model ./my-model --port 9000 --max-model-len 4096",
)


@takes_model_and_engine_of_group
@takes_server
def command(
    config: EngineConfig,
    server: ServerSettings,
    prefill: Annotated[int, typer.Option(min=1, help="Number of prefill engines.")] = 1,
    decode: Annotated[int, typer.Option(min=1, help="Number of decode engines.")] = 1,
    restarts: Annotated[
        int, typer.Option(min=0, help="How often within ten minutes servers that died are started again.")
    ] = 3,
) -> None:
    """Serve a model by prefill and decode engines on this machine.

    Clients talk to the decode engines, which have the prefill engines compute
    long prompts. Each engine is a server of its own, as of `headway serve`. A
    server that dies is started again; meanwhile the others do its work.

    --host and --port are those of the first decode engine. The other decode
    engines have the ports after it, and the prefill engines the ports after
    these, for this machine alone. With keys, the prefill engines ask for a key
    that the decode engines alone have.
    """
    from headway.cluster.prefill_decode import serve_group

    raise typer.Exit(serve_group(config, server, prefill=prefill, decode=decode, restarts=restarts))
