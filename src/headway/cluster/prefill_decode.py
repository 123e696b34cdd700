"""A group of prefill and decode engines: clients talk to the decode engines, which ask the prefill engines."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headway.client.restart_budget import RestartBudget
from headway.cluster.engine_group import EngineGroup, GroupError, GroupStartError
from headway.cluster.group_server import GroupServer, Member
from headway.cluster.held_ports import HeldPorts
from headway.config import KV_SECRET_VARIABLE, EngineConfig, Role
from headway.server.serve import BAD_START, log_to_standard_error, stop_signals

logger = logging.getLogger(__name__)

BROKEN = 1  # exit code
LOOPBACK = "127.0.0.1"


def members_of(
    config: EngineConfig,
    ports: HeldPorts,
    *,
    prefill: int,
    decode: int,
    host: str,
    port: int,
    options: Mapping[str, Any],
) -> list[Member]:
    """The servers of a group. Decode engines have the ports from `port` on, and the prefill engines the next ports, at
    addresses of this machine alone; port 0: any ports.

    options: of all servers, see `headway.server.serve.serve`. Raises OSError if a port is taken.
    """

    def take(where: str, number: int) -> int:
        return ports.take(where, port and port + number)

    decode_ports = [take(host, number) for number in range(decode)]
    prefill_ports = [take(LOOPBACK, decode + number) for number in range(prefill)]
    lenders = [f"{LOOPBACK}:{ports.take(LOOPBACK)}" for _ in range(prefill)]
    urls = [f"http://{LOOPBACK}:{number}" for number in prefill_ports]
    lends = [replace(config, role=Role.PREFILL, kv_listen=lender) for lender in lenders]
    pulls = replace(config, role=Role.DECODE, kv_peers=",".join(lenders))
    for_prefill = {name: value for name, value in options.items() if name != "max_local_prefill_tokens"}
    return [
        *(
            Member(f"prefill-{number}", lends[number], LOOPBACK, prefill_ports[number], for_prefill)
            for number in range(prefill)
        ),
        *(
            Member(f"decode-{number}", pulls, host, decode_ports[number], {**options, "prefill": urls})
            for number in range(decode)
        ),
    ]


def serve_group(
    config: EngineConfig,
    host: str = LOOPBACK,
    port: int = 8000,
    *,
    prefill: int = 1,
    decode: int = 1,
    restarts: int = 3,
    options: Mapping[str, Any],
) -> int:
    """Serve until a signal comes; returns the exit status: 0, 1 if too many servers have died, 2 if one does not start.

    Prints "Headway serving MODEL at URL" for each decode engine when all servers take requests.

    restarts: how often within ten minutes servers that died are started again. options: of all servers, see
        `headway.server.serve.serve`. Raises OSError if a port is taken.
    """
    log_to_standard_error()
    # Other users of the machine can reach its loopback addresses too.
    os.environ.setdefault(KV_SECRET_VARIABLE, secrets.token_hex())
    with HeldPorts() as ports:
        members = members_of(config, ports, prefill=prefill, decode=decode, host=host, port=port, options=options)
        return asyncio.run(_serve(members, RestartBudget(restarts), float(options.get("shutdown_grace", 0.0))))


async def _serve(members: list[Member], restarts: RestartBudget, grace: float) -> int:
    width = max(len(member.name) for member in members)
    lines = _lines_of_servers()
    group = EngineGroup(members, restarts, lambda name, line: lines.info("%-*s | %s", width, name, line))
    with stop_signals() as stop:
        life = asyncio.create_task(_live(group))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({life, stopped}, return_when=asyncio.FIRST_COMPLETED)
        broken = life.exception() if life.done() else None
        if not life.done():
            life.cancel()
            logger.info("the group stops: running requests may go on for %g s", grace)
        stop.clear()
        ending = asyncio.create_task(group.stop(grace))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({ending, stopped}, return_when=asyncio.FIRST_COMPLETED)
        group.terminate()  # a second signal ends the grace time at once; after the end of all it does nothing
        await ending
        stopped.cancel()
    if broken is None:
        return 0
    if not isinstance(broken, GroupError):
        raise broken
    print(f"headway: {broken}", file=sys.stderr)
    return BAD_START if isinstance(broken, GroupStartError) else BROKEN


async def _live(group: EngineGroup) -> None:
    await group.start()
    decode = [server for server in group.servers.values() if server.member.config.role is Role.DECODE]
    for server in group.servers.values():
        if server not in decode:
            logger.info("%s answers the decode engines at %s", server.member.name, server.url)
    for server in decode:
        _announce(server)
    await group.run()


def _announce(server: GroupServer) -> None:
    print(f"Headway serving {server.model} at {server.url}", flush=True)


def _lines_of_servers() -> logging.Logger:
    """Writes lines to standard error as they are. A logger, since it goes on when the reader has gone."""
    lines = logging.getLogger(f"{__name__}.lines")
    lines.propagate = False
    lines.setLevel(logging.INFO)
    if not lines.handlers:
        lines.addHandler(logging.StreamHandler())
    return lines
