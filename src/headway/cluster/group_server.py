"""The process of a server in a group, and the lines that it prints."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import psutil  # type: ignore[import-untyped]

from headway.cluster.group import Kept
from headway.config import EngineConfig
from headway.server.settings import ServerSettings

READY = re.compile(r"Headway serving (?P<model>.+) at (?P<url>https?://\S+)")
COMMAND = (sys.executable, "-P", "-m", "headway.cluster.server_process")

Tell = Callable[[str, str], None]

_COMPLAINT = "headway: "  # how the line begins in which a server says why it does not start
_LONGEST_LINE = 1 << 16  # bytes
_POLL_S = 0.05  # seconds
_LAST_LINES_S = 2.0  # seconds for what a process has printed before its end


class Member(msgspec.Struct, frozen=True):
    """A server that a group has. name: for people."""

    name: str
    config: EngineConfig
    settings: ServerSettings


class ServerProcess(Kept):
    """Runs the process of a server, one at a time.

    tell: gets name and line of all that the process prints. ready: set while the server takes requests. url, model: of
    the server, from its first start on.
    """

    def __init__(self, name: str, tell: Tell) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self.url = self.model = self.complaint = ""
        self._tell = tell
        self.last_pid: int | None = None  # of the present life, or of the one before
        self._listens = False
        self._process: asyncio.subprocess.Process | None = None
        self._family: list[psutil.Process] = []

    @property
    def pid(self) -> int | None:
        """The process id of the API process; None while there is none."""
        return None if self._process is None else self._process.pid

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The program, and its arguments."""

    @abstractmethod
    async def first_line(self) -> bytes:
        """What the process is to be, in JSON. Called for each life, while the process imports its libraries."""

    def more(self) -> dict[str, Any]:
        """More arguments of `asyncio.create_subprocess_exec`."""
        return {}

    async def run(self) -> str:
        process = await asyncio.create_subprocess_exec(
            *self.command(),
            **self.more(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches the group, and the group tells its servers
        )
        self._process, self._family, self.last_pid = process, [], process.pid
        assert process.stdin is not None and process.stdout is not None
        lines = asyncio.ensure_future(self._read(process.stdout))
        try:
            process.stdin.write(await self.first_line() + b"\n")
            self._listens = True
            code = await _exit_code(process)
            return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        finally:
            if process.returncode is None:
                process.kill()
                await _exit_code(process)
            self.ready.clear()
            self._process, self._listens = None, False
            for relative in self._family:  # an engine that hangs would keep its port, and its memory
                with contextlib.suppress(psutil.NoSuchProcess):
                    relative.kill()
            await asyncio.wait({lines}, timeout=_LAST_LINES_S)
            lines.cancel()

    def write(self, line: bytes) -> None:
        """Send a further line to the process, if it has got its first one."""
        if self._listens and self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(line + b"\n")

    def send_signal(self, number: int) -> None:
        """Send it to the API process, if there is one."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def terminate(self) -> None:
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
                self._tell(self.name, line)

    def _note_family(self) -> None:
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has died already
                self._family = psutil.Process(self._process.pid).children(recursive=True)


class GroupServer(ServerProcess):
    """A member of a group, with an engine of its own."""

    def __init__(self, member: Member, tell: Tell) -> None:
        super().__init__(member.name, tell)
        self.member = member

    def command(self) -> Sequence[str]:
        return COMMAND

    async def first_line(self) -> bytes:
        return msgspec.json.encode(self.member)


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
