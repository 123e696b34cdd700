"""`headway serve --ray`: engines and API replicas on a Ray cluster, from one command to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from dataclasses import replace
from functools import partial
from typing import Any

from headway.client.in_thread import in_thread
from headway.cluster.held_ports import HeldPorts
from headway.cluster.ray import RayMissing, check_ray
from headway.cluster.ray.options import ClusterOptions
from headway.config import EngineConfig
from headway.logs import log_to_standard_error
from headway.model_files import ModelFiles
from headway.server.serve import BAD_START, stop_signals
from headway.server.settings import ServerSettings

logger = logging.getLogger(__name__)

APP = "headway"
_POLL_S = 0.5


class StartError(ValueError):
    """The cluster could not start; the message says why, in one line."""


def serve_command(config: EngineConfig, settings: ServerSettings) -> int:
    """`headway serve --ray`; see `serve_on_ray`."""
    try:
        if settings.prefill:
            raise StartError("--prefill names servers; on a Ray cluster prefill engines are replicas: prefill_engines")
        options = ClusterOptions(
            config=config,
            settings=replace(settings, api_server_count=1, data_parallel_size=1),
            engines=settings.data_parallel_size,
            apis=settings.api_server_count,
        )
    except ValueError as error:
        print(f"headway: {error}", file=sys.stderr)
        return BAD_START
    return serve_on_ray(options)


def serve_on_ray(options: ClusterOptions) -> int:
    """Serve until a signal comes; returns the exit status: 0, or 2 if it cannot start.

    Prints "Headway serving MODEL at URL" when all replicas are there. Uses the Ray cluster of this machine if there is
    one, or that of RAY_ADDRESS; else it starts one, which ends with it.
    """
    settings = options.settings
    log_to_standard_error(settings.log_format, settings.log_level)
    try:
        check_ray()
        with HeldPorts() as ports:
            port = ports.take(settings.host, settings.port)  # said here, in one line; Ray's proxy would only log it
        files = ModelFiles.resolve(options.config)
        # The engines have the files under the name that the user gave; a hub model is found on each machine anew.
        named = replace(
            options,
            config=replace(options.config, served_model_name=files.name),
            settings=replace(settings, port=port),
            own_door=True,
        )
        return asyncio.run(_serve(named, files.name))
    except (RayMissing, StartError, ValueError, OSError) as error:
        print(f"headway: {error}", file=sys.stderr)
        return BAD_START


async def _serve(options: ClusterOptions, model: str) -> int:
    import ray
    from ray import serve

    settings = options.settings
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with stop_signals() as stop:
        _connect(ray)
        try:
            serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False})
            from headway.cluster.ray.app import application

            app = application(options)
            logger.info("Ray starts %s", _replicas(options))
            run = asyncio.ensure_future(in_thread(partial(serve.run, app, name=APP, route_prefix="/")))
            stopped = asyncio.ensure_future(stop.wait())
            told: dict[str, str] = {}
            while not run.done() and not stopped.done():
                await asyncio.wait({run, stopped}, timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED)
                _tell_news(serve, told)
            if run.done():
                if (error := run.exception()) is not None:
                    raise StartError(_why_failed(serve) or _first_line(error)) from None
                shown = f"[{settings.host}]" if ":" in settings.host else settings.host
                print(f"Headway serving {model} at {settings.tls.scheme}://{shown}:{settings.port}", flush=True)
                while not stopped.done():
                    await asyncio.wait({stopped}, timeout=_POLL_S)
                    _tell_news(serve, told)
            logger.info("stopping: running requests may go on for %g s", settings.shutdown_grace)
            stop.clear()
            ending = asyncio.ensure_future(in_thread(partial(_end, serve)))
            second = asyncio.ensure_future(stop.wait())
            await asyncio.wait({ending, second}, return_when=asyncio.FIRST_COMPLETED)
            for task in (ending, second, run):
                task.cancel()
        finally:
            with contextlib.suppress(Exception):  # Ray itself may be gone
                ray.shutdown()
    return 0


def _connect(ray: Any) -> None:
    for tries_left in (1, 0):
        try:
            ray.init(include_dashboard=False, log_to_driver=True, configure_logging=False)
            return
        except Exception as error:
            ray.shutdown()
            if not tries_left or "timed out" not in str(error):  # a busy machine needs more than Ray's 30 s
                raise StartError(f"no Ray cluster can be reached or started: {_first_line(error)}") from None


def _end(serve: Any) -> None:
    """Take the application away; and Ray Serve with it, if it has no other."""
    if set(serve.status().applications) - {APP}:
        serve.delete(APP)
    else:
        serve.shutdown()


def _replicas(options: ClusterOptions) -> str:
    engines = f"{options.engines} engines" if options.engines > 1 else "1 engine"
    if options.scales:
        engines = f"{options.engines} to {options.max_engines} engines"
    lenders = f", {options.prefill_engines} prefill engines" if options.prefill_engines else ""
    return f"{engines}{lenders} and {options.apis} API replica{'s' if options.apis > 1 else ''}"


def _tell_news(serve: Any, told: dict[str, str]) -> None:
    """Log what has changed of the deployments: why a replica waits (a cluster that is full), or has failed."""
    for name, (status, message) in _deployments(serve).items():
        news = f"{status}: {message}" if message else status
        if told.get(name) != news:
            told[name] = news
            level = logging.WARNING if message and status != "HEALTHY" else logging.INFO
            logger.log(level, "%s is %s", name, news)


def _deployments(serve: Any) -> dict[str, tuple[str, str]]:
    app = serve.status().applications.get(APP)
    if app is None:
        return {}
    return {name: (one.status.value, " ".join(one.message.split())) for name, one in app.deployments.items()}


def _why_failed(serve: Any) -> str:
    """The error of the replica that did not start: the last line of what Ray tells of it."""
    app = serve.status().applications.get(APP)
    if app is None:
        return ""
    for name, one in app.deployments.items():
        if one.status.value in ("DEPLOY_FAILED", "UNHEALTHY") and one.message:
            errors = [line for line in one.message.splitlines() if "Error" in line]
            return f"{name} does not start: {(errors or one.message.splitlines())[-1].strip()}"
    return str(app.message).strip().replace("\n", " ")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
