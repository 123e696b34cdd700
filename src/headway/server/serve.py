"""The life of a server: bind the port, start the engine, serve, stop.

On SIGTERM or SIGINT new requests get 503, running requests may finish within the grace time, the others end with an
error. Then the engine process ends and the sockets are removed. A second signal ends the grace time at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial

import uvicorn
from fastapi import FastAPI

from headway.client.engine_client import EngineClient, EngineStartError
from headway.client.engines import Engines
from headway.client.restart_budget import RestartBudget
from headway.config import ANY_PEER, EngineConfig, Role
from headway.logs import leave_out, log_to_standard_error
from headway.server.activity import ActivityReport
from headway.server.banner import Subject, banner
from headway.server.entrance.connections import ACCEPTS_PER_TURN, BoundedProtocol, raise_file_limit
from headway.server.prefill_engines import PrefillEngines
from headway.server.routes.api import create_app
from headway.server.service import Service
from headway.server.settings import ServerSettings

logger = logging.getLogger(__name__)

ENGINE_DIED = 1  # exit status
BAD_START = 2  # exit status when the server cannot start with these arguments
BACKLOG = 2048  # the most connections that wait to be accepted
_KEEP_ALIVE_S = 30  # seconds; longer than clients keep an idle connection, so that the clients close it
_POLL_S = 0.02  # seconds
_SLOW_CLIENT_S = 3  # seconds for a client to read the end of its answer, or to send the end of its request

StartEngine = Callable[[], Coroutine[None, None, Engines]]


def serve(config: EngineConfig, settings: ServerSettings | None = None) -> int:
    """Serve until a signal comes; returns the exit status, which is 1 if the engine died for good.

    Prints "Headway serving MODEL at URL" on standard output when the server takes requests.

    If the server cannot start (the port, the model, the template), it prints one line on standard error and returns 2.
    """
    settings = settings or ServerSettings()
    restarts = RestartBudget(settings.engine_restarts)
    start = partial(EngineClient.start, config, engine_args=engine_args(settings), restarts=restarts)
    return serve_with(config, settings, start, lambda: bind(settings.host, settings.port))


def engine_args(settings: ServerSettings) -> tuple[str, ...]:
    """The arguments of the engine processes of a server."""
    return (*settings.engine_args, "--log-format", settings.log_format, "--log-level", settings.log_level)


def serve_with(
    config: EngineConfig,
    settings: ServerSettings,
    start: StartEngine,
    listen: Callable[[], socket.socket],
    *,
    says_what: bool = True,
) -> int:
    """`serve` with engines that `start` starts or finds, on a socket of `listen`. Raises no error of theirs.

    says_what: write to the log what is served.
    """
    BoundedProtocol.limit = raise_file_limit()
    log_to_standard_error(settings.log_format, settings.log_level)
    try:
        make_app = app_of(config, settings)
        with listen() as listening:
            return asyncio.run(_serve(start, listening, settings, make_app, says_what))
    except OSError as error:
        print(f"headway: cannot serve at {settings.host}:{settings.port}: {error.strerror or error}", file=sys.stderr)
    except (EngineStartError, ValueError) as error:
        print(f"headway: {error}", file=sys.stderr)
    return BAD_START


def app_of(config: EngineConfig, settings: ServerSettings) -> Callable[[Engines, str], FastAPI]:
    """Makes the application, once there is an engine. Raises ValueError for settings that do not fit the engine."""
    make_app = partial(
        create_app,
        doors=settings.doors,
        model_aliases=settings.model_aliases,
        admin_api=settings.admin_api,
        chat_template=settings.chat_template,
        trust_request_chat_template=settings.trust_request_chat_template,
        escape_special_tokens=settings.escape_special_tokens,
        strict_fields=settings.strict_fields,
        tool_call_parser=settings.tool_call_parser,
        enable_auto_tool_choice=settings.enable_auto_tool_choice,
        reasoning_parser=settings.reasoning_parser,
    )
    if config.kv_peers == ANY_PEER:
        raise ValueError(
            f"kv_peers {ANY_PEER!r} is for clusters that find their engines themselves, as on Ray: name the addresses"
        )
    if not settings.prefill:
        return make_app
    if config.role is not Role.DECODE:
        raise ValueError(f"prefill engines are asked by engines whose role is decode, got role {config.role}")
    if not config.kv_addresses:
        raise ValueError("prefill engines need kv_peers too: the addresses where they lend their KV")
    engines = PrefillEngines(
        settings.prefill,
        timeout=config.receive_timeout,
        least_tokens=settings.max_local_prefill_tokens + 1,
        api_key=settings.prefill_api_key,
    )
    return partial(make_app, prefill=engines)


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket bound to the port. It refuses connections until it listens: the model is loaded first. shared: other
    processes of this user may listen there too, and the kernel deals out the connections. Raises OSError."""
    if not 0 <= port <= 65535:
        raise OSError(f"a port must be in [0, 65535], got {port}")
    family, kind, proto, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


async def _serve(
    start_engine: StartEngine,
    listening: socket.socket,
    settings: ServerSettings,
    make_app: Callable[[Engines, str], FastAPI],
    says_what: bool,
) -> int:
    with stop_signals() as stop:
        start = asyncio.ensure_future(start_engine())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not start.done():
            logger.info("stopped before the model was loaded")
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            return 0
        client = start.result()
        gc.collect()
        gc.freeze()  # loaded objects live as long as the process: no collection visits them
        try:
            app = make_app(client, client.files.name)
            listening.listen(BACKLOG)
            await run_app(app, client, listening, stop, settings, says_what)
            died = client.dead.is_set()
            if app.state.service.prefill is not None:
                await app.state.service.prefill.close()
        finally:
            await client.shutdown()
            gc.unfreeze()  # libraries complain at exit of objects that live on
        logger.info("stopped")
    return ENGINE_DIED if died else 0


async def run_app(
    app: FastAPI,
    client: Engines,
    listening: socket.socket,
    stop: asyncio.Event,
    settings: ServerSettings,
    says_what: bool,
) -> None:
    """Serve the application until `stop` is set, or all engines are dead for good; then let the requests end."""
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,  # one form for all lines of the log: see `log_to_standard_error`
            http=BoundedProtocol,
            backlog=ACCEPTS_PER_TURN,
            log_level=settings.uvicorn_log_level or ("info" if settings.access_log else "warning"),
            access_log=settings.access_log,
            lifespan="off",
            proxy_headers=False,  # nothing here depends on the client's address
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=2 * _SLOW_CLIENT_S,  # there is nothing left to wait for by then
            **settings.tls.of_uvicorn(),
        )
    )
    leave_out(settings.quiet_paths)
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(_POLL_S)
    if not serving.done():
        listening.listen(BACKLOG)  # again: uvicorn has set the kernel's queue to what one turn accepts
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        port = listening.getsockname()[1]
        address = f"{settings.tls.scheme}://{shown}:{port}"
        if says_what:
            for line in banner(Subject.of(client, settings, address)):
                logger.info("%s", line)
        _announce(f"Headway serving {client.files.name} at {address}")
        watches = [
            asyncio.ensure_future(app.state.service.loop_monitor.watch()),
            asyncio.ensure_future(app.state.service.metrics.watch()),
        ]
        if settings.log_stats:
            watches.append(asyncio.ensure_future(ActivityReport(lambda: client.snapshot).watch()))
        stopped, died = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(client.dead.wait())
        await asyncio.wait({stopped, died, serving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopped, died, *watches):
            task.cancel()
        await _drain(app.state.service, stop, settings.shutdown_grace)
        server.should_exit = True
        _close(server, unread_only=True)  # their clients had the grace time to read
        await asyncio.wait({serving}, timeout=_SLOW_CLIENT_S)
        _close(server)
    await serving


def _close(server: uvicorn.Server, *, unread_only: bool = False) -> None:
    """End the connections that are open. unread_only: only the connections with an answer that is not read."""
    open_ones = [one for one in server.server_state.connections if isinstance(one, BoundedProtocol)]
    closed = [connection for connection in open_ones if connection.flow.write_paused or not unread_only]
    for connection in closed:
        connection.transport.abort()
    if closed:
        logger.warning("closed %d connections whose clients did not read or send in time", len(closed))


async def _drain(service: Service, stop: asyncio.Event, grace: float) -> None:
    """Refuse new requests, wait for open requests up to `grace` seconds, fail the others. It does not wait while the
    engine is paused."""
    service.draining = True
    stop.clear()
    client = service.client
    logger.info("%s", stop_message(client.num_open, grace))
    until = time.monotonic() + grace
    while client.num_open and time.monotonic() < until and not stop.is_set() and not client.snapshot.paused:
        await asyncio.sleep(_POLL_S)
    came, cut = client.num_added, client.num_open
    if cut:
        logger.warning("%s cut by the %s", _requests_are(cut), "second signal" if stop.is_set() else "shutdown")
    client.fail_open()
    logger.info("stopping the engine; %d requests came, %d had ended, %d were cut", came, came - cut, cut)


def stop_message(num_open: int, grace: float) -> str:
    """What a server says that is asked to stop."""
    if not num_open:
        return "the server stops: no requests are open"
    waits = f"{_requests_are(num_open)} open and may go on for up to {grace:g} s"
    return f"the server stops: {waits}; Ctrl-C again to stop now"


def _requests_are(count: int) -> str:
    return "1 request is" if count == 1 else f"{count} requests are"


def _announce(line: str) -> None:
    """Print a line on standard output. A server whose standard output was closed goes on without."""
    try:
        print(line, flush=True)
    except OSError as error:
        logger.warning("standard output cannot be written (%s): %s", error.strerror or error, line)
        with open(os.devnull, "wb") as nowhere:  # what is left in the buffer would fail again at exit
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextlib.contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An `asyncio.Event` that every SIGTERM and SIGINT sets."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    """A server that leaves signals alone: `serve` handles them, since it must end the engine too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
