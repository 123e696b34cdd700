"""Any program that serves HTTP and answers GET /health, for the time of a `with` block."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

import httpx

from headway.bench.child_process import ChildError, ChildProcess


def free_port() -> int:
    """A TCP port of 127.0.0.1 that no program listens on, for a program that cannot choose one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServingProcess(ChildProcess):
    """A program that serves at this port of 127.0.0.1. The block begins when it is healthy.

    Raises ChildError if it ends before, or needs more than `start_timeout_s` seconds.
    """

    def __init__(self, command: Sequence[str], port: int, *, start_timeout_s: float, stop_timeout_s: float) -> None:
        super().__init__(command, stop_timeout_s=stop_timeout_s)
        self.base_url = f"http://127.0.0.1:{port}"
        self._start_timeout_s = start_timeout_s

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + self._start_timeout_s
        while not self._is_healthy():
            if not self.running or time.monotonic() > until:
                raise ChildError(f"the program does not answer at {self.base_url}:\n{self.last_words()}")
            time.sleep(0.2)

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.base_url}/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False
