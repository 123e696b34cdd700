"""The engine process and the sockets to it, as its API process holds them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio

from headway.config import EngineConfig
from headway.model_limits import ModelLimits
from headway.wire import codec, to_client, to_engine
from headway.wire.launch import Launch, input_address, output_address

EXIT_TIMEOUT = 10.0  # seconds that an engine process may take to end before it is killed
LAST_WORDS = 0.5  # seconds to wait for why a process ended that has just ended
MAX_SOCKET_DIR = 80  # characters; a Unix socket's address has room for 107


class EngineStartError(RuntimeError):
    """The engine could not be started; the message says why, in one line."""


class Link(Protocol):
    """What an `EngineClient` needs of its engine. One event loop uses it."""

    @property
    def pid(self) -> int:
        """The engine's process id."""

    def send(self, message: to_engine.ToEngine) -> None:
        """Hand a message over; in order, never waits."""

    async def receive(self) -> to_client.ToClient:
        """The next message, in order. May be cancelled without losing one."""

    async def ended(self) -> str:
        """Waits for the engine to end and says how it did."""

    async def close(self) -> None:
        """End the engine, leave nothing behind. Idempotent."""


class ProcessLink:
    """A `Link` to an engine process of our own."""

    def __init__(self, process: asyncio.subprocess.Process, socket_dir: str, client: int = 0) -> None:
        self.process = process
        self.socket_dir = socket_dir
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._commands = self._context.socket(zmq.PUSH)
        self._commands.set_hwm(0)  # never blocks; the engine refuses what is too much
        self._commands.connect(input_address(socket_dir))
        # Not made from a plain socket: two objects of one socket would both close it, the second one somebody else's.
        self._outputs = zmq.asyncio.Socket(self._context, zmq.PULL)
        self._outputs.set_hwm(0)
        self._outputs.bind(output_address(socket_dir, client))

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self.process.pid

    @classmethod
    async def open(cls, engine_args: Sequence[str] = ()) -> ProcessLink:
        """Start the process, which loads its libraries while it waits for `launch`."""
        socket_dir = tempfile.mkdtemp(prefix="headway-")
        if len(socket_dir) > MAX_SOCKET_DIR:
            os.rmdir(socket_dir)
            socket_dir = tempfile.mkdtemp(prefix="headway-", dir="/tmp")
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "headway.engine.process", *engine_args),
                stdin=asyncio.subprocess.PIPE,
                stdout=2,  # standard output is for people: what libraries print goes to standard error
                start_new_session=True,  # Ctrl-C in the terminal is for the parent
            )
        except BaseException:
            shutil.rmtree(socket_dir, ignore_errors=True)
            raise
        return cls(process, socket_dir)

    def launch(self, config: EngineConfig, limits: ModelLimits) -> None:
        """Say what to run. Standard input stays open: its end tells the process that we are gone."""
        assert self.process.stdin is not None
        line = msgspec.json.encode(Launch(config, limits, self.socket_dir))
        self.process.stdin.write(line + b"\n")

    async def wait_ready(self) -> to_client.Ready:
        """Raises EngineStartError when the engine cannot be loaded."""
        message = asyncio.ensure_future(self.receive())
        ended = asyncio.ensure_future(self.ended())
        try:
            await asyncio.wait({message, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not message.done():
                await asyncio.wait({message}, timeout=LAST_WORDS)
            if not message.done():
                raise EngineStartError(f"the engine process ended while it was loading ({ended.result()})")
            match message.result():
                case to_client.Ready() as ready:
                    return ready
                case to_client.LoadFailed(text):
                    raise EngineStartError(text)
                case other:
                    raise EngineStartError(f"the engine process answered {type(other).__name__}, not Ready")
        finally:
            message.cancel()
            ended.cancel()

    def send(self, message: to_engine.ToEngine) -> None:
        self._commands.send(codec.encode(message), zmq.NOBLOCK)

    async def receive(self) -> to_client.ToClient:
        return codec.decode_to_client(await self._outputs.recv())

    async def ended(self) -> str:
        status = await self.process.wait()
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    async def close(self, *, kill: bool = False) -> None:
        """End the process (by force if it does not by itself), close the sockets, remove their folder."""
        if self._commands.closed:
            return
        process = self.process
        with contextlib.suppress(ProcessLookupError):  # it may end between any two of these lines
            if process.returncode is None:
                if kill:
                    process.kill()
                else:
                    self.send(to_engine.Shutdown())
                try:
                    await asyncio.wait_for(process.wait(), EXIT_TIMEOUT)
                except TimeoutError:
                    process.kill()
                    await process.wait()
        if process.stdin is not None:
            process.stdin.close()
        self._outputs.close(linger=0)
        self._commands.close(linger=0)
        self._context.term()
        shutil.rmtree(self.socket_dir, ignore_errors=True)
