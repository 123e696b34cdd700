"""`headway serve` as a child process that lasts as long as a `with` block."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

_READY = re.compile(r"^Headway serving (?P<model>.+) at (?P<url>http://\S+)", re.MULTILINE)


class ServerError(RuntimeError):
    """The server did not start; the message ends with what it printed last."""


class ServerProcess:
    """Starts the server on a free port, waits until it answers, and leaves nothing behind.

        with ServerProcess(["--scheduler", "v1"]) as server:
            httpx.get(server.base_url + "/health")

    arguments: what follows `headway serve`; the port is chosen here.
    log: where the server's output goes, so that it can never block on a full pipe.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        start_timeout_s: float = 300.0,
        stop_timeout_s: float = 20.0,
        command: Sequence[str] = (sys.executable, "-m", "headway.cli", "serve"),
    ) -> None:
        self.base_url = ""
        self.model = ""
        self._command = [*command, "--port", "0", *arguments]
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s

    def __enter__(self) -> ServerProcess:
        self._folder = tempfile.TemporaryDirectory(prefix="headway-server-")
        self.log = Path(self._folder.name) / "server.log"
        with self.log.open("wb") as output:
            # A session of its own: Ctrl-C reaches only us, and whatever the server starts can be stopped with it.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                },  # the line that says "ready" must not wait in a buffer
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            running = self._process.poll() is None
            if ready := _READY.search(self._output()):
                self.model, self.base_url = ready["model"], ready["url"]
                return
            if not running:
                raise ServerError(f"the server stopped with exit code {self._process.returncode}:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"the server was not ready in {self._start_timeout_s:g} s:\n{self._tail()}")
            time.sleep(0.05)

    def _output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _tail(self) -> str:
        return "\n".join(self._output().splitlines()[-20:])

    def _stop(self) -> None:
        """Ask the server to end, then end whatever is left of its process group."""
        try:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):  # the group is killed below in any case
                self._process.wait(self._stop_timeout_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._folder.cleanup()


def exit_on_sigterm() -> None:
    """Make SIGTERM unwind the stack as Ctrl-C does, so that `with` blocks end and children are stopped."""

    def unwind(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, unwind)
