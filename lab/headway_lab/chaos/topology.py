"""The servers of a run, and the wires between them.

                  direct: shared memory        proxies: messages, and the blocks of decode-1
decode-0 ────────────────────── prefill-0      decode-0 ──▷── prefill-1    shared memory
decode-1 ────────────────────── prefill-0      decode-1 ──▷── prefill-1    sockets alone
"""

from __future__ import annotations

from typing import Any

from headway.cluster.group_server import Member
from headway.cluster.held_ports import HeldPorts
from headway.config import EngineConfig, KVTransport, Role
from headway.server.settings import ServerSettings
from headway_lab.chaos.proxy import Proxy

HOST = "127.0.0.1"
LEASE_S = 10.0
RECEIVE_S = 10.0  # seconds until a prompt whose KV does not come is computed by D
MANY = 10_000  # restarts
PREFILL, DECODE = ("prefill-0", "prefill-1"), ("decode-0", "decode-1")
SERVERS = (*PREFILL, *DECODE)
WIRES = tuple(f"{decode} to {PREFILL[1]}" for decode in DECODE)
_RESTARTS_ENGINE = {"prefill-1", "decode-0"}  # without their API process; the group starts the others again whole
_SMALL: dict[str, Any] = {"device": "cpu", "num_blocks": 300, "max_num_seqs": 12, "max_model_len": 720}
_DECODE_BLOCKS = 80  # too few for all slots: decode engines preempt


def mixed() -> Member:
    """The server whose answers are right."""
    return Member("mixed", EngineConfig(**_SMALL), ServerSettings(host=HOST, port=0, shutdown_grace=0.0))


class Topology:
    """members: for a group. proxies: by their wires. urls: of the servers."""

    def __init__(self, ports: HeldPorts) -> None:
        http = {name: ports.take(HOST) for name in SERVERS}
        kv = {name: ports.take(HOST) for name in PREFILL}
        self.urls = {name: f"http://{HOST}:{port}" for name, port in http.items()}
        self.proxies = {wire: Proxy(kv[PREFILL[1]], ports) for wire in WIRES}
        self.members = []
        for name in SERVERS:
            options: dict[str, Any] = {"host": HOST, "port": http[name], "shutdown_grace": 1.0, "admin_api": True}
            options["engine_restarts"] = MANY if name in _RESTARTS_ENGINE else 0
            if name in PREFILL:
                config = self._config(role=Role.PREFILL, kv_listen=f"{HOST}:{kv[name]}")
            else:
                proxy = self.proxies[f"{name} to {PREFILL[1]}"]
                peers = f"{HOST}:{kv[PREFILL[0]]},{HOST}:{kv[PREFILL[1]]}={HOST}:{proxy.port}"
                way = KVTransport.AUTO if name == DECODE[0] else KVTransport.TCP
                reads = {"kv_peers": peers, "kv_transport": way}
                config = self._config(role=Role.DECODE, num_blocks=_DECODE_BLOCKS, reserve="none", **reads)
                options |= {"prefill": tuple(self.urls[one] for one in PREFILL), "max_local_prefill_tokens": 16}
            self.members.append(Member(name, config, ServerSettings(**options)))

    @staticmethod
    def _config(**more: Any) -> EngineConfig:
        return EngineConfig(**{**_SMALL, "lend_timeout": LEASE_S, "receive_timeout": RECEIVE_S, **more})
