"""A group of prefill and decode engines: clients talk to the decode engines, which ask the prefill engines."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from dataclasses import replace

from headway.client.restart_budget import RestartBudget
from headway.cluster.group import Group
from headway.cluster.group_life import keep_alive, teller
from headway.cluster.group_server import GroupServer, Member
from headway.cluster.held_ports import HeldPorts
from headway.config import KV_SECRET_VARIABLE, EngineConfig, Role
from headway.logs import log_to_standard_error
from headway.server.entrance.doors import Doors
from headway.server.entrance.keys import ApiKey
from headway.server.entrance.tls import Tls
from headway.server.settings import ServerSettings

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


def members_of(
    config: EngineConfig,
    ports: HeldPorts,
    *,
    prefill: int,
    decode: int,
    settings: ServerSettings,
) -> list[Member]:
    """The servers of a group. Decode engines have the ports from `settings.port` on, and the prefill engines the next
    ports, at addresses of this machine alone; port 0: any ports.

    settings: of all servers. If they ask for keys, prefill engines ask for a key that the decode engines alone have.
    Raises OSError if a port is taken.
    """
    host, port = settings.host, settings.port

    def take(where: str, number: int) -> int:
        return ports.take(where, port and port + number)

    decode_ports = [take(host, number) for number in range(decode)]
    prefill_ports = [take(LOOPBACK, decode + number) for number in range(prefill)]
    lenders = [f"{LOOPBACK}:{ports.take(LOOPBACK)}" for _ in range(prefill)]
    urls = [f"http://{LOOPBACK}:{number}" for number in prefill_ports]
    lends = [replace(config, role=Role.PREFILL, kv_listen=lender) for lender in lenders]
    pulls = replace(config, role=Role.DECODE, kv_peers=",".join(lenders))
    key = secrets.token_hex() if settings.doors.keys else None
    inside = Doors() if key is None else Doors(keys=(ApiKey.of(key),))
    answers = replace(settings, prefill=tuple(urls), prefill_api_key=key)
    computes = replace(settings, host=LOOPBACK, doors=inside, tls=Tls())
    return [
        *(
            Member(f"prefill-{number}", lends[number], replace(computes, port=prefill_ports[number]))
            for number in range(prefill)
        ),
        *(Member(f"decode-{number}", pulls, replace(answers, port=decode_ports[number])) for number in range(decode)),
    ]


def serve_group(
    config: EngineConfig,
    settings: ServerSettings,
    *,
    prefill: int = 1,
    decode: int = 1,
    restarts: int = 3,
) -> int:
    """Serve until a signal comes; returns the exit status: 0, 1 if too many servers have died, 2 if one does not start.

    Prints "Headway serving MODEL at URL" for each decode engine when all servers take requests.

    settings: see `members_of`. restarts: how often within ten minutes servers that died are started again. Raises
    OSError if a port is taken.
    """
    log_to_standard_error(settings.log_format, settings.log_level)
    # Other users of the machine can reach its loopback addresses too.
    os.environ.setdefault(KV_SECRET_VARIABLE, secrets.token_hex())
    with HeldPorts() as ports:
        members = members_of(config, ports, prefill=prefill, decode=decode, settings=settings)
        return asyncio.run(_serve(members, RestartBudget(restarts), settings))


async def _serve(members: list[Member], restarts: RestartBudget, settings: ServerSettings) -> int:
    tell = teller(settings, max(len(member.name) for member in members))
    group = Group([GroupServer(member, tell) for member in members], restarts)

    def announce() -> None:
        decode = [server for server in group.processes.values() if server.member.config.role is Role.DECODE]
        for server in group.processes.values():
            if server not in decode:
                logger.info("%s answers the decode engines at %s", server.name, server.url)
        for server in decode:
            print(f"Headway serving {server.model} at {server.url}", flush=True)

    return await keep_alive(group, settings.shutdown_grace, announce)
