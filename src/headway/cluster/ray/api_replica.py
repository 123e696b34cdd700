"""One API process of a cluster: the application of `server/`, over engines that Ray brings."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from ray.serve.exceptions import BackPressureError

from headway.client.in_thread import in_thread
from headway.cluster.ray import offices
from headway.cluster.ray.identity import digest_of
from headway.cluster.ray.lenders import Lenders
from headway.cluster.ray.options import ClusterOptions
from headway.cluster.ray.remote_engines import RemoteEngines
from headway.config import Role
from headway.errors import QueueFullError
from headway.model_files import ModelFiles
from headway.server.serve import BACKLOG, app_of, bind, run_app
from headway.server.service import Service

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class ApiReplica:
    """`start` makes it. For one event loop. host: of this machine. engines: that decode; lenders: that only prefill, if
    there are such."""

    def __init__(
        self,
        options: ClusterOptions,
        host: str,
        files: ModelFiles,
        engines: RemoteEngines,
        lenders: RemoteEngines | None,
    ) -> None:
        self._host = host
        self._options = options
        self._files = files
        self._engines = engines
        self._lenders = lenders
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, options: ClusterOptions, host: str, engines: DeploymentHandle, lenders: DeploymentHandle | None
    ) -> ApiReplica:
        """Returns when there is an engine of each kind. Raises ValueError for a model that cannot be served."""
        files = await in_thread(partial(ModelFiles.resolve, options.config))
        tokenizer = await in_thread(files.load_tokenizer)
        model = await in_thread(partial(digest_of, files))

        async def reach(handle: DeploymentHandle, role: Role) -> RemoteEngines:
            return await _reach(handle, options, role, host, files, tokenizer, model)

        if lenders is None:
            return cls(options, host, files, await reach(engines, Role.MIXED), None)
        return cls(options, host, files, await reach(engines, Role.DECODE), await reach(lenders, Role.PREFILL))

    def app(self) -> FastAPI:
        """The application."""
        settings, lenders = self._options.settings, self._lenders
        more: dict[str, Any] = {"api_replica": f"{self._host}:{os.getpid()}"}
        if lenders is not None:
            more["kv_from_requests"] = False  # decode engines read from every address that they are told
            more["prefill"] = Lenders(
                lenders,
                least_tokens=settings.max_local_prefill_tokens + 1,
                lease_seconds=self._options.config.lend_timeout,
            )
        app = app_of(self._options.config, settings)(self._engines, self._files.name, **more)
        if self._options.own_door:
            listening = bind(settings.host, settings.port, shared=True)
            listening.listen(BACKLOG)
            self._running = asyncio.ensure_future(
                run_app(app, self._engines, listening, self._stop, settings, says_what=False)
            )
        else:
            service: Service = app.state.service
            self._running = asyncio.ensure_future(service.loop_monitor.watch())
        return app

    async def close(self) -> None:
        """Let the requests end, if this replica has a door of its own; else Ray has waited for them. Then leave the
        engines."""
        self._stop.set()
        if self._running is not None:
            if not self._options.own_door:
                self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        for engines in (self._engines, self._lenders):
            if engines is not None:
                await engines.shutdown()


async def _reach(
    handle: DeploymentHandle,
    options: ClusterOptions,
    role: Role,
    host: str,
    files: ModelFiles,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
) -> RemoteEngines:
    config = options.engine(role)
    most = options.config.max_num_seqs + options.config.max_waiting
    # By gRPC, and not by Ray's own calls of actors, which cost several times more. A handle comes from where the
    # application is deployed, and would keep the transport of that process.
    hold = handle.options(method_name="hold", stream=True, _by_reference=False)

    async def call(ticket: int, client: int) -> None:
        try:
            # Apart from the HTTP request: Ray would count all calls of one request as one, and cancel them with it.
            response = contextvars.Context().run(hold.remote, ticket, client)
            try:
                async for _ in response:
                    pass
            finally:
                response.cancel()  # Ray does not, where the call was routed but nothing of it was read yet
        except BackPressureError as error:
            raise QueueFullError(f"all engines are full: {error.message}; try again later") from None

    blocks = -(-files.limits.max_model_len // config.block_size) + 1
    engines = RemoteEngines(
        call=call,
        host=host,
        model=model,
        files=files,
        tokenizer=tokenizer,
        # Until the first engine is there: then what that has.
        config=config.for_scheduler(max_model_len=files.limits.max_model_len, num_blocks=max(2, blocks)),
        max_waiting=most - options.config.max_num_seqs,
        shares_calls=options.router == "prefix",  # the others count calls
    )
    offices.open_office(handle.deployment_name, engines)
    logger.info("waiting for engines of %s", handle.deployment_name)
    await engines.wait_for_first()
    return engines
