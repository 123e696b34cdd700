"""One server of a group: its process, and the lines that it prints."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable

import msgspec
import psutil  # type: ignore[import-untyped]

from headway.config import EngineConfig
from headway.server.settings import ServerSettings

READY = re.compile(r"Headway serving (?P<model>.+) at (?P<url>https?://\S+)")
COMMAND = (sys.executable, "-P", "-m", "headway.cluster.server_process")
_COMPLAINT = "headway: "  # how the line begins in which a server says why it does not start
_LONGEST_LINE = 1 << 16  # bytes
_POLL_S = 0.05  # seconds
_LAST_LINES_S = 2.0  # seconds for what a process has printed before its end


class Member(msgspec.Struct, frozen=True):
    """A server that a group has. name: for people."""

    name: str
    config: EngineConfig
    settings: ServerSettings


class GroupServer:
    """Runs the process of a member, one at a time.

    tell: gets each line of the process, without its end. ready: set while the server takes requests. url, model: of the
    server, from its first start on. complaint: the line in which it said why it did not start.
    """

    def __init__(self, member: Member, tell: Callable[[str], None]) -> None:
        self.member = member
        self.ready = asyncio.Event()
        self.url = self.model = self.complaint = ""
        self._tell = tell
        self._process: asyncio.subprocess.Process | None = None
        self._family: list[psutil.Process] = []

    @property
    def pid(self) -> int | None:
        """The process id of the API process; None while there is none."""
        return None if self._process is None else self._process.pid

    def engine_pids(self) -> list[int]:
        """The process ids of its engine, as it was when the server began to take requests."""
        return [process.pid for process in self._family]

    async def run(self) -> int:
        """One life of the server. Returns the exit code of its process, when nothing of it is left."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches the group, and the group tells its servers
        )
        self._process, self._family = process, []
        assert process.stdin is not None and process.stdout is not None
        lines = asyncio.ensure_future(self._read(process.stdout))
        try:
            process.stdin.write(msgspec.json.encode(self.member) + b"\n")
            return await _exit_code(process)
        finally:
            if process.returncode is None:
                process.kill()
                await _exit_code(process)
            self.ready.clear()
            self._process = None
            for relative in self._family:  # an engine that hangs would keep its port, and its memory
                with contextlib.suppress(psutil.NoSuchProcess):
                    relative.kill()
            await asyncio.wait({lines}, timeout=_LAST_LINES_S)
            lines.cancel()

    def send_signal(self, number: int) -> None:
        """Send it to the API process, if there is one."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask the server to end: running requests may go on for its grace time; asked again, it does not wait."""
        self.send_signal(signal.SIGTERM)

    async def _read(self, output: asyncio.StreamReader) -> None:
        async for line in _lines(output):
            if (found := READY.fullmatch(line)) and not self.ready.is_set():
                self.model, self.url = found["model"], found["url"]
                self._note_family()
                self.ready.set()
            elif line.startswith(_COMPLAINT):
                self.complaint = line.removeprefix(_COMPLAINT)
            else:
                self._tell(line)

    def _note_family(self) -> None:
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has died already
                self._family = psutil.Process(self._process.pid).children(recursive=True)


async def _exit_code(process: asyncio.subprocess.Process) -> int:
    """Not `wait`: that waits for the end of the pipes too, which an engine that hangs keeps open."""
    while process.returncode is None:
        await asyncio.sleep(_POLL_S)
    return process.returncode


async def _lines(output: asyncio.StreamReader) -> AsyncIterator[str]:
    rest = b""
    while part := await output.read(_LONGEST_LINE):
        *whole, rest = (rest + part).split(b"\n")
        if len(rest) >= _LONGEST_LINE:
            whole, rest = [*whole, rest], b""
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
