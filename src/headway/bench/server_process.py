"""`headway serve` as a child process, for the time of a `with` block."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from headway.bench.child_process import ChildProcess

_READY = re.compile(r"^Headway serving (?P<model>.+) at (?P<url>https?://\S+)", re.MULTILINE)


class ServerError(RuntimeError):
    """The server did not start; the message ends with the last lines that it printed."""


class ServerProcess(ChildProcess):
    """Starts the server on a free port, and waits until it answers.

        with ServerProcess(["--scheduler", "v1"]) as server:
            httpx.get(server.base_url + "/health")

    arguments: those of `headway serve`, without the port.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        start_timeout_s: float = 300.0,
        stop_timeout_s: float = 20.0,
        command: Sequence[str] = (sys.executable, "-m", "headway.cli", "serve"),
    ) -> None:
        super().__init__([*command, "--port", "0", *arguments], stop_timeout_s=stop_timeout_s)
        self.base_url = ""
        self.model = ""
        self._start_timeout_s = start_timeout_s

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            running = self.running
            if ready := _READY.search(self.printed()):
                self.model, self.base_url = ready["model"], ready["url"]
                return
            if not running:
                code = self._process.returncode
                raise ServerError(f"the server stopped with exit code {code}:\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise ServerError(f"the server was not ready in {self._start_timeout_s:g} s:\n{self.last_words()}")
            time.sleep(0.05)


def exit_on_sigterm() -> None:
    """Make SIGTERM unwind the stack as Ctrl-C does, so that `with` blocks end and children are stopped."""

    def unwind(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, unwind)
