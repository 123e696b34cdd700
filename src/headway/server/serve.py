"""The life of a server: bind the port, start the engine, serve, stop.

On SIGTERM or SIGINT new requests get 503, running requests may finish within the grace time, the others end with an
error. Then the engine process ends and the sockets are removed. A second signal ends the grace time at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import uvicorn
from fastapi import FastAPI

from headway.client.engine_client import EngineClient, EngineStartError
from headway.config import EngineConfig
from headway.server.api import create_app
from headway.server.connections import ACCEPTS_PER_TURN, BoundedProtocol, raise_file_limit
from headway.server.service import Service

logger = logging.getLogger(__name__)

BAD_START = 2  # exit status when the server cannot start with these arguments
_BACKLOG = 2048  # the most connections that wait to be accepted
_KEEP_ALIVE_S = 30  # seconds; longer than clients keep an idle connection, so that the clients close it
_POLL_S = 0.02  # seconds
_SLOW_READER_S = 3  # seconds for a client to read the end of its answer


def serve(
    config: EngineConfig,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    shutdown_grace: float = 10.0,
    engine_args: Sequence[str] = (),
    access_log: bool = False,
    admin_api: bool = False,
    chat_template: str | None = None,
    trust_request_chat_template: bool = False,
) -> int:
    """Serve until a signal comes; returns the exit status.

    Prints "Headway serving MODEL at URL" on standard output when the server takes requests.

    port: 0: any free port.
    shutdown_grace: seconds that running requests may go on after the signal.
    engine_args: for the engine process, see `python -m headway.engine.process --help`.
    admin_api: serve /pause, /resume, /is_paused and /reset_prefix_cache, and /debug/ownership to every host.
    chat_template: used instead of the model's template: a file, the text of a template, or the name of a template of
        the tokenizer.
    trust_request_chat_template: requests may bring a template, whose time and memory have no limit.

    If the server cannot start (the port, the model, the template), it prints one line on standard error and returns 2.
    """
    BoundedProtocol.limit = raise_file_limit()
    make_app = partial(
        create_app,
        admin_api=admin_api,
        chat_template=chat_template,
        trust_request_chat_template=trust_request_chat_template,
    )
    try:
        with bind(host, port) as listening:
            return asyncio.run(_serve(config, listening, host, shutdown_grace, engine_args, access_log, make_app))
    except OSError as error:
        print(f"headway: cannot serve at {host}:{port}: {error.strerror or error}", file=sys.stderr)
    except (EngineStartError, ValueError) as error:
        print(f"headway: {error}", file=sys.stderr)
    return BAD_START


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the port. It refuses connections until it listens: the model is loaded first. Raises
    OSError."""
    if not 0 <= port <= 65535:
        raise OSError(f"a port must be in [0, 65535], got {port}")
    family, kind, proto, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


async def _serve(
    config: EngineConfig,
    listening: socket.socket,
    host: str,
    shutdown_grace: float,
    engine_args: Sequence[str],
    access_log: bool,
    make_app: Callable[[EngineClient, str], FastAPI],
) -> int:
    with _signals() as stop:
        start = asyncio.ensure_future(EngineClient.start(config, engine_args=engine_args))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not start.done():
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            return 0
        client = start.result()
        gc.collect()
        gc.freeze()  # loaded objects live as long as the process: no collection visits them, at exit neither
        try:
            app = make_app(client, client.files.name)
            listening.listen(_BACKLOG)
            await _run(app, client, listening, host, stop, shutdown_grace, access_log)
        finally:
            await client.shutdown()
    return 0


async def _run(
    app: FastAPI,
    client: EngineClient,
    listening: socket.socket,
    host: str,
    stop: asyncio.Event,
    shutdown_grace: float,
    access_log: bool,
) -> None:
    server = _Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            backlog=ACCEPTS_PER_TURN,
            log_level="info" if access_log else "warning",
            access_log=access_log,
            lifespan="off",
            proxy_headers=False,  # nothing here depends on the client's address
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_SLOW_READER_S,
        )
    )
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(_POLL_S)
    if not serving.done():
        listening.listen(_BACKLOG)  # again: uvicorn has set the kernel's queue to what one turn accepts
        shown = f"[{host}]" if ":" in host else host
        port = listening.getsockname()[1]
        print(f"Headway serving {client.files.name} at http://{shown}:{port}", flush=True)
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({stopped, serving}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        await _drain(app.state.service, stop, shutdown_grace)
        server.should_exit = True
        _cut_off_slow_readers(server)
    await serving


def _cut_off_slow_readers(server: uvicorn.Server) -> None:
    """End the connections whose clients have not read their answers; they had the grace time."""
    open_ones = [one for one in server.server_state.connections if isinstance(one, BoundedProtocol)]
    stuck = [connection for connection in open_ones if connection.flow.write_paused]
    for connection in stuck:
        connection.transport.abort()
    if stuck:
        logger.warning("closed %d connections whose clients did not read their answers", len(stuck))


async def _drain(service: Service, stop: asyncio.Event, grace: float) -> None:
    """Refuse new requests, wait for open requests up to `grace` seconds, fail the others. It does not wait while the
    engine is paused."""
    service.draining = True
    stop.clear()
    client = service.client
    if client.num_open:
        logger.info("%d requests may finish within %g s", client.num_open, grace)
    until = time.monotonic() + grace
    while client.num_open and time.monotonic() < until and not stop.is_set() and not client.snapshot.paused:
        await asyncio.sleep(_POLL_S)
    client.fail_open("the server is shutting down")


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Event]:
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
