"""The servers that `tools/clients.py` has started, and what several clients' tests ask them."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Server:
    """url: without /v1."""

    url: str
    model: str
    key: str

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def running(self) -> int:
        """How many requests the engine has, waiting ones included."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.partition("{")[0] in names))

    def is_idle_soon(self) -> bool:
        until = time.monotonic() + PATIENCE
        while self.running() and time.monotonic() < until:
            time.sleep(0.1)
        return not self.running()


def _server(name: str, model: str) -> Server:
    return Server(json.loads(os.environ["HEADWAY_CLIENTS"])[name], model, os.environ["HEADWAY_CLIENTS_KEY"])


@pytest.fixture(scope="session")
def sums() -> Server:
    """Serves the embedded model, which adds, copies and sorts."""
    return _server("sums", "headway-default")


@pytest.fixture(scope="session")
def talker() -> Server:
    """Serves the model of tests/clients/talker.py, which knows when to call a tool."""
    return _server("talker", "talker")


@pytest.fixture(scope="session")
def thinker() -> Server:
    """The same model, with a parser of its reasoning."""
    return _server("thinker", "talker")


@pytest.fixture(scope="session")
def tokenizer() -> str:
    """The folder with the tokenizer of the embedded model, for clients that count tokens themselves."""
    return str(Path(__file__).parents[3] / "src" / "headway" / "default_model")


@pytest.fixture(scope="session")
def javascript() -> Callable[..., Any]:
    """Runs a call of tests/clients/javascript/NAME.mjs and gives what it returns."""

    def call(script: str, name: str, server: Server) -> Any:
        text = (Path(__file__).parent.parent / "javascript" / f"{script}.mjs").read_text()
        done = subprocess.run(
            ["node", "--input-type=module", "-", name, server.v1, server.model, server.key],
            input=text,
            cwd=os.environ["HEADWAY_CLIENTS_NODE"],  # packages are looked for from here, as the script has no place
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call
