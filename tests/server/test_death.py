"""A server whose engine process is killed, and an engine process whose server is: with a simulated device."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import zmq

from headway.server.settings import ServerSettings
from headway.wire.launch import input_address, output_address
from tests.server.running import PATIENCE, Server, is_running, save_without_weights

SIMULATED = ("--executor", "simulated", "--base-s", "0.02")  # 250 tokens take 5 seconds
LONG = {"prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_without_weights(folder)
    return folder


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def kill_engine_under_a_stream(server: Server) -> str:
    """The rest of the stream that was open when the engine was killed."""
    (engine,) = server.children()
    with server.http.stream("POST", "/v1/completions", json=LONG) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(engine, signal.SIGKILL)
        return "\n".join(lines)


def test_a_killed_engine_ends_streams_with_an_error_and_the_server_with_status_1(model: Path) -> None:
    with Server(model, engine_args=SIMULATED) as server:
        rest = kill_engine_under_a_stream(server)
        assert '"code":"engine_dead"' in rest and rest.rstrip().endswith("data: [DONE]")
        assert server.process.wait(60) == 1
        log = server.log()
        assert " CRITICAL " in log and "the engine process has ended (killed by SIGKILL); 1 open requests fail" in log
        assert " INFO headway.client.engine_life: the engine is ready: process " in log
        assert "the server stops: no requests are open" in log
        assert server.leftovers() == []


def junk(folder: Path) -> None:
    """Send bytes that are no message to both sockets of the server whose temporary folder this is."""
    (sockets,) = folder.glob("headway-*")
    with zmq.Context() as context:
        for address in (input_address(str(sockets)), output_address(str(sockets), 0)):
            sender = context.socket(zmq.PUSH)
            sender.connect(address)
            for frames in ([bytes.fromhex("92a54162ff72749101")], [b""], [b"\x00" * 9, b"two"], [b"\x91" * 4000]):
                sender.send_multipart(frames)
            sender.close(linger=5000)
            with socket.socket(socket.AF_UNIX) as raw:  # not even ZeroMQ's protocol
                raw.connect(address.removeprefix("ipc://"))
                raw.send(b"GET / HTTP/1.1\r\n\r\n")


def test_junk_is_counted_and_a_killed_engine_is_restarted_once(model: Path) -> None:
    def dropped(side: str) -> bool:
        return (
            f'headway:wire_errors_total{{engine="0",model_name="tiny",side="{side}"}} 4.0'
            in server.http.get("/metrics").text
        )

    def healthy() -> bool:
        return server.http.get("/health").status_code == 200

    with Server(model, engine_args=SIMULATED, options={"engine_restarts": 1}) as server:
        junk(server.folder)
        assert eventually(lambda: dropped("engine") and dropped("client"))
        (old,) = server.children()
        assert '"code":"engine_restarting"' in kill_engine_under_a_stream(server)
        refused = server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
        assert not healthy() and not is_running(old)
        assert eventually(healthy)
        assert server.metric("engine_restarts_total") == 1 and dropped("engine") and dropped("client")
        answer = server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        assert answer.status_code == 200
        assert len(list(server.folder.glob("headway-*"))) == 1, "the old folder is gone"
        kill_engine_under_a_stream(server)
        assert server.process.wait(60) == 1
        assert server.leftovers() == []


@pytest.mark.parametrize("engine_is", ["loading", "serving", "stopped"])
def test_a_killed_server_leaves_neither_engine_nor_folder(model: Path, engine_is: str) -> None:
    with Server(model, engine_args=SIMULATED, wait=engine_is != "loading") as server:
        assert eventually(lambda: bool(server.children()))
        (engine,) = server.children()
        if engine_is == "stopped":
            os.kill(engine, signal.SIGSTOP)
        if engine_is == "serving":
            with server.http.stream("POST", "/v1/completions", json=LONG) as response:
                lines = response.iter_lines()
                next(lines)
                server.kill()
                with pytest.raises(httpx.HTTPError):
                    list(lines)
        server.kill()
        assert eventually(lambda: not is_running(engine))
        assert server.leftovers() == []


@pytest.mark.parametrize("grace", [-1.0, float("nan"), float("inf")])
def test_a_grace_that_is_no_time_is_refused(grace: float) -> None:
    with pytest.raises(ValueError, match=f"shutdown_grace must be a number of seconds of at least 0, got {grace}"):
        ServerSettings(shutdown_grace=grace)


def test_fewer_restarts_than_none_are_refused() -> None:
    with pytest.raises(ValueError, match="engine_restarts must be at least 0, got -1"):
        ServerSettings(engine_restarts=-1)


_SERVE = """
import sys
from dataclasses import replace
from headway import cli
from headway.config import EngineConfig
from headway.server import serve
model, port, *engine_args = sys.argv[1:]
start = serve.serve
serve.serve = lambda config, given: start(config, replace(given, engine_args=tuple(engine_args)))  # without weights
sys.exit(cli.main(["serve", model, "--port", port]))
"""


@pytest.mark.parametrize("how", ["closed", "broken"])
def test_a_server_without_standard_output_serves_all_the_same(model: Path, tmp_path: Path, how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", _SERVE, str(model), str(port), *SIMULATED]
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {shlex.join(command)} {'>&-' if how == 'closed' else ''}"], stdout=writer, stderr=log
        )
        os.close(writer)

        def serves() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            with contextlib.suppress(httpx.ConnectError):
                return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
            return False

        try:
            assert eventually(serves)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()
