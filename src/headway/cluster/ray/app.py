"""The deployments of a cluster."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from headway.cluster.ray.api_replica import ApiReplica
from headway.cluster.ray.engine_replica import EngineReplica, host_here
from headway.cluster.ray.options import ClusterOptions
from headway.config import Role
from headway.logs import log_to_standard_error

_ROUTERS = {
    "prefix": "headway.cluster.ray.request_router:EngineRouter",
    "ray": "headway.cluster.ray.request_router:DefaultRouter",
    "round-robin": "headway.cluster.ray.request_router:TurnsRouter",
}
_POLICY = "headway.cluster.ray.scaling:ScalingPolicy"
_BEYOND_DRAIN_S = 15.0  # that a replica may take to end beyond the time of its requests
_STATS_SECONDS = 1.0
# Ray's own code on the way of a request: with these a call costs half of the time. All in one thread, so that the
# router asks the engines of its process without locks.
_LEAN = {
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}
_QUIET = {"enable_access_log": False}


class Engine:
    """The class of the deployments of engines."""

    async def __init__(self, options: str, role: str) -> None:  # type: ignore[misc]  # Ray awaits it
        read = ClusterOptions.of_json(options)
        log_to_standard_error(read.settings.log_format, read.settings.log_level)
        self._replica = await EngineReplica.start(read, Role(role), host_here())

    def record_replica_metadata(self) -> dict[str, Any]:
        """Ray brings it to the routers."""
        return self._replica.identity.metadata()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray brings it to the policy."""
        return self._replica.stats()

    async def hold(self, ticket: int, client: int) -> AsyncIterator[None]:
        """See `EngineReplica.hold`. A stream of nothing: of a plain call by gRPC Ray does not say that the replica has
        taken it before it is over."""
        await self._replica.hold(ticket, client)
        return
        yield

    def check_health(self) -> None:
        """Raises RuntimeError, saying why, if the engine must be started again."""
        self._replica.check_health()

    async def __del__(self) -> None:
        """Ray calls it when the requests have ended, or their time is over."""
        if hasattr(self, "_replica"):
            await self._replica.close()


@serve.ingress()
class Api:
    """The class of the deployment of the API."""

    async def __init__(  # type: ignore[misc]  # as above
        self, options: str, engines: DeploymentHandle, lenders: DeploymentHandle | None = None
    ) -> None:
        read = ClusterOptions.of_json(options)
        log_to_standard_error(read.settings.log_format, read.settings.log_level)
        self._replica = await ApiReplica.start(read, host_here(), engines, lenders)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._replica.app()

    async def __del__(self) -> None:
        """Ray calls it when the requests have ended, or their time is over."""
        if hasattr(self, "_replica"):
            await self._replica.close()


def application(options: ClusterOptions) -> Application:
    """The application of these options."""
    if options.prefill_engines and options.config.kv_secret is None:
        secret = replace(options.config, kv_secret=secrets.token_hex())
        options = replace(options, config=secret)
    text = options.to_json()
    if not options.prefill_engines:
        engines = _engines("Engine", options, options.scales).bind(text, Role.MIXED)
        return _api(options).bind(text, engines)
    fixed = replace(options, engines=options.prefill_engines, max_engines=None)
    lenders = _engines("Prefill", fixed, False).bind(text, Role.PREFILL)
    engines = _engines("Decode", options, options.scales).bind(text, Role.DECODE)
    return _api(options).bind(text, engines, lenders)


def _engines(name: str, options: ClusterOptions, scales: bool) -> Any:
    ranks = options.config.tensor_parallel_size  # processes of one engine, on one machine
    count: dict[str, Any] = {"num_replicas": options.engines}
    if scales:
        count = {
            "autoscaling_config": {
                "min_replicas": options.engines,
                "max_replicas": options.max_engines,
                "upscale_delay_s": options.upscale_delay,
                "downscale_delay_s": options.downscale_delay,
                "look_back_period_s": max(2.0, options.upscale_delay),
                "metrics_interval_s": _STATS_SECONDS,
                "policy": {
                    "policy_function": _POLICY,
                    "policy_kwargs": {"target_load": options.target_load},
                },
            }
        }
    return serve.deployment(
        Engine,
        name=name,
        ray_actor_options=_resources(ranks * options.cpus_per_engine, ranks * options.gpus_per_engine),
        max_ongoing_requests=options.most_requests,
        max_queued_requests=options.most_requests,
        request_router_config={"request_router_class": _ROUTERS[options.router]},
        logging_config=_QUIET,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        **_ending(options),
        **count,
    )


def _api(options: ClusterOptions) -> Any:
    return serve.deployment(
        Api,
        name="Api",
        num_replicas=options.apis,
        ray_actor_options=_resources(options.cpus_per_api, 0.0),
        max_ongoing_requests=options.most_requests * (options.max_engines or options.engines),
        logging_config=_QUIET,
        **_ending(options),
    )


def _resources(cpus: float, gpus: float) -> dict[str, Any]:
    variables = {name: value for name, value in _LEAN.items() if name not in os.environ}
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": variables}}


def _ending(options: ClusterOptions) -> dict[str, float]:
    grace = options.settings.shutdown_grace
    return {"graceful_shutdown_timeout_s": grace + _BEYOND_DRAIN_S, "graceful_shutdown_wait_loop_s": 0.5}
