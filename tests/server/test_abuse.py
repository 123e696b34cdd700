"""A running server under clients that do not speak, and clients that do not read."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from headway.bench.peak_memory import PeakMemory
from tests.server.fakes import MODEL
from tests.server.running import Server, save_without_weights

SOFT_LIMIT = 1_024  # open files
SIMULATED = ("--executor", "simulated", "--base-s", "0.02")  # 250 tokens take 5 seconds
SILENT = 1_100  # connections
UNREAD = {"prompt": ["a"] * 8, "n": 16, "max_tokens": 255, "ignore_eos": True, "stream": True}
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
ENOUGH_TOKENS = 128 * 200  # of such a stream, for all buffers to be full


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * SILENT:
        pytest.skip(f"needs a hard limit of {2 * SILENT} open files, this machine has {hard}")
    folder = tmp_path_factory.mktemp("model")
    save_without_weights(folder)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT_LIMIT, hard))  # the server inherits it
    try:
        server = Server(folder, engine_args=SIMULATED, max_num_seqs=3 * 128, grace=2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * SILENT), hard))
    with server:
        yield server
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def address(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


@contextlib.contextmanager
def unread_streams(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """Connections that have asked for long streams, and take next to nothing of them. The block begins when the
    engine is done with them."""
    before = server.metric("generation_tokens_total")
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(unread_stream(server)) for _ in range(count)]
        until = time.monotonic() + 60
        while server.metric("generation_tokens_total") < before + count * ENOUGH_TOKENS:
            assert time.monotonic() < until
            time.sleep(0.02)
        server.wait_for("num_requests_running", 0)
        yield streams


@contextlib.contextmanager
def unread_stream(server: Server) -> Iterator[socket.socket]:
    body = json.dumps({"model": MODEL, **UNREAD}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(address(server))
        connection.sendall(HEAD.format(length=len(body)).encode() + body)
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        yield connection


def test_more_silent_connections_than_the_soft_limit_of_files_keep_no_client_out(server: Server) -> None:
    limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    assert f"{'Max open files':<25} {SOFT_LIMIT}" not in limits
    with contextlib.ExitStack() as silent:
        for _ in range(SILENT):
            silent.enter_context(socket.create_connection(address(server), timeout=60))
        assert server.http.get("/health").status_code == 200
        answer = server.openai.completions.create(model=MODEL, prompt="ab", max_tokens=5)
        assert answer.usage is not None and answer.usage.completion_tokens == 5
    assert server.log().count("\n") < 20, server.log()


def test_a_stream_that_is_not_read_takes_bounded_memory_and_has_an_end_once_it_is_read(server: Server) -> None:
    peak = PeakMemory(server.process.pid)
    with unread_streams(server, 1) as (connection,):
        assert peak.growth() < 64 * 2**20
        read = bytearray()
        while not read.endswith(b"\r\n0\r\n\r\n"):
            data = connection.recv(2**20)
            assert data, read[-500:]
            read += data
    assert read.count(b"data: [DONE]") == 1
    assert b'"code":"slow_reader"' in read or read.count(b'"finish_reason":"length"') == 128
    assert server.http.get("/health").status_code == 200


def test_sigterm_does_not_wait_for_clients_that_do_not_read_or_send(server: Server) -> None:
    """The last test of this server."""
    with unread_streams(server, 3), socket.create_connection(address(server), timeout=60) as half:
        half.sendall(HEAD.format(length=100).encode() + b"{")
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200  # so `half` has been taken before it
        lines = server.log().count("\n")
        assert server.stop(signal.SIGTERM, timeout=60) == 0
    log = server.log()
    assert "Traceback" not in log
    assert "closed 3 connections whose clients did not read or send in time" in log
    assert "closed 1 connections whose clients did not read or send in time" in log
    assert log.count("\n") - lines <= 5, log
    assert server.leftovers() == []
