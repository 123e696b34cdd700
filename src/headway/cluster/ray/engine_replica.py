"""One engine of a cluster: its process, its desk, and what it tells Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import zmq
import zmq.asyncio

from headway import __version__
from headway.client.engine_client import EngineClient
from headway.client.engine_load import load_of
from headway.cluster.ray import desk
from headway.cluster.ray.identity import Identity, digest_of
from headway.cluster.ray.options import ClusterOptions
from headway.cluster.ray.scaling import LOAD, LoadMeter
from headway.config import Role
from headway.wire import encrypted
from headway.wire.wire_errors import WireError, WireErrors

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0


class EngineReplica:
    """`start` makes it. For one event loop. Ray calls the methods of its deployment (`app.py`), which come here."""

    def __init__(self, client: EngineClient, host: str, options: ClusterOptions) -> None:
        self._client = client
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.set_hwm(0)
        address = encrypted.listen(self._socket, f"tcp://{host}:*")
        assert client.address is not None, "the engine was told to listen"
        self.identity = Identity(client.address, address, client.engine_pid, __version__, digest_of(client.files))
        self._desk = desk.Desk(client.detach)
        self._errors = WireErrors("desk")
        config = client.config
        self._meter = LoadMeter(
            ttft_target=options.ttft_target,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        self._tasks = [asyncio.ensure_future(work) for work in (self._receive(), self._look(), self._watch())]

    @classmethod
    async def start(cls, options: ClusterOptions, role: Role, host: str) -> EngineReplica:
        """Start the engine process. host: of this machine, where the other replicas reach it.

        Raises EngineStartError, or ValueError for a model that cannot be served, with one line.
        """
        settings = options.settings
        config = options.lender(host) if role is Role.PREFILL else options.engine(role)
        arguments = ("--log-format", settings.log_format, "--log-level", settings.log_level)
        client = await EngineClient.start(
            config,
            engine_args=(*settings.engine_args, *arguments),
            listen=host,
            tells_cache=config.enable_prefix_caching,
        )
        return cls(client, host, options)

    async def hold(self, ticket: int, client: int) -> None:
        """Open while requests of this client are in the engine: so Ray waits for them before it ends the replica.

        Raises EngineDeadError when the engine dies.
        """
        await self._desk.hold(client, ticket)

    def check_health(self) -> None:
        """Raises RuntimeError, saying why, if the engine is dead, stuck or silent. Never waits."""
        if (why := self._client.why_unhealthy()) is not None:
            raise RuntimeError(why)

    def stats(self) -> dict[str, float]:
        """The load, for autoscaling."""
        snapshot = self._client.snapshot
        num_waiting_tokens = load_of(snapshot).num_waiting_tokens
        num_busy = snapshot.num_running + snapshot.num_waiting + snapshot.num_preparing
        load = self._meter.load(
            num_waiting_tokens=num_waiting_tokens, num_busy=num_busy, kv_usage=snapshot.kv_cache_usage
        )
        return {LOAD: load}

    async def close(self) -> None:
        """End the engine process: Ray has waited for its requests, up to the time that they have."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close(linger=0)
        self._context.term()
        await self._client.shutdown()

    async def _receive(self) -> None:
        while True:
            data = await self._socket.recv()
            try:
                self._desk.take(desk.decode(data))
            except WireError as error:
                self._errors.note(error)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._desk.look()
            snapshot = self._client.snapshot
            self._meter.take(time.monotonic(), snapshot.num_prefill_tokens, load_of(snapshot).num_waiting_tokens)

    async def _watch(self) -> None:
        await self._client.dead.wait()
        self._desk.fail(self._client.why_unhealthy() or "the engine has died")


def host_here() -> str:
    """The address of this machine in the cluster."""
    from ray.util import get_node_ip_address

    host: Any = get_node_ip_address()
    return str(host)
