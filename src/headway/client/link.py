"""Engine processes and the sockets to them, on the side of the API process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio

from headway.config import EngineConfig
from headway.model_limits import ModelLimits
from headway.wire import codec, encrypted, to_client, to_engine
from headway.wire.launch import Launch, input_address, output_address
from headway.wire.wire_errors import WireError, WireErrors

EXIT_TIMEOUT = 10.0  # seconds that an engine process may take to end before it is killed
LEAVE_MS = 1000  # milliseconds that word of our leaving may take
LAST_WORDS = 0.5  # seconds to wait for the last message of a process that has just ended
MAX_SOCKET_DIR = 80  # characters; the address of a Unix socket has at most 107


class EngineStartError(RuntimeError):
    """The engine could not be started; the message says why, in one line."""


class Link(Protocol):
    """The connection of an `EngineClient` to its engine. Only one event loop uses it."""

    @property
    def pid(self) -> int:
        """The engine's process id."""

    def send(self, message: to_engine.ToEngine) -> None:
        """Send a message. Messages arrive in order. Never waits."""

    async def receive(self) -> to_client.ToClient:
        """The next message, in order. May be cancelled without losing one. Raises WireError for bytes that are no
        message; the next call goes on behind them."""

    async def ended(self) -> str:
        """Wait for the end of the engine; returns how it ended, in a few words."""

    async def close(self, *, kill: bool = False) -> None:
        """End the engine process if it is this process that owns it, by force if `kill`, and remove its sockets: then
        it is gone when this returns. Idempotent."""


@contextlib.asynccontextmanager
async def unless_it_fails(link: ProcessLink) -> AsyncIterator[ProcessLink]:
    """Closes `link`, by force, if the block raises."""
    try:
        yield link
    except BaseException:
        await link.close(kill=True)
        raise


class EngineSockets:
    """The sockets of one client of an engine.

    commands, outputs: the addresses where the engine and this client receive messages; an `outputs` of tcp may ask for
        any free port. address: of this client, for the engine.

    Raises zmq.ZMQError for an address where this process cannot listen.
    """

    def __init__(self, commands: str, outputs: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._commands = self._context.socket(zmq.PUSH)
        self._commands.set_hwm(0)  # never blocks; the engine refuses requests above its limit
        # Not made from a plain socket: two objects would share one socket, and both would close it. The second close
        # could hit a new socket that has got the same number.
        self._outputs = zmq.asyncio.Socket(self._context, zmq.PULL)
        self._outputs.set_hwm(0)
        try:
            encrypted.connect(self._commands, commands)
            if outputs.startswith("tcp://"):
                self.address = encrypted.listen(self._outputs, outputs)
            else:
                self._outputs.bind(outputs)
                self.address = outputs
        except zmq.ZMQError:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        return self._commands.closed

    def send(self, message: to_engine.ToEngine) -> None:
        """See `Link.send`."""
        self._commands.send(codec.encode(message), zmq.NOBLOCK)

    async def receive(self) -> to_client.ToClient:
        """See `Link.receive`."""
        return codec.decode_to_client(codec.only_frame(await self._outputs.recv_multipart()))

    def close(self, *, linger_ms: int = 0) -> None:
        """Close both. linger_ms: milliseconds that the last messages to the engine get to leave; this waits so long."""
        self._outputs.close(linger=0)
        self._commands.close(linger=linger_ms)
        self._context.term()


class AttachedLink:
    """A `Link` to an engine process that another process owns. The owner's word that it has ended comes from outside,
    by `engine_has_ended`.

    commands: the address where the engine receives messages. outputs: an address where this process can listen, of any
    free port: `tcp://10.0.0.1:*`, where the engine may have another clock. client: the number of this process, which
    the engine must never have seen before. pid: of the engine process. Raises zmq.ZMQError for an address that cannot
    be used.
    """

    def __init__(self, commands: str, outputs: str, client: int, pid: int) -> None:
        self.pid = pid
        self.client = client
        self._sockets = EngineSockets(commands, outputs)
        self._is_far = outputs.startswith("tcp://")
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def attach(self) -> to_client.Ready:
        """Become a client of the engine; waits until it takes requests. Raises EngineStartError if it ends before."""
        self.send(to_engine.Attach(self.client, self._sockets.address))
        return await first_word(self)

    def engine_has_ended(self, how: str) -> None:
        """The engine process is gone. how: in a few words."""
        if not self._end.done():
            self._end.set_result(how)

    def send(self, message: to_engine.ToEngine) -> None:
        if not self._sockets.closed:
            self._sockets.send(_without_times(message) if self._is_far else message)

    async def receive(self) -> to_client.ToClient:
        return await self._sockets.receive()

    async def ended(self) -> str:
        return await asyncio.shield(self._end)

    async def close(self, *, kill: bool = False) -> None:
        """Leave the engine, which aborts what is open here and goes on, whatever `kill` says. Idempotent."""
        if self._sockets.closed:
            return
        lives = not self._end.done()
        if lives:
            self.send(to_engine.Detach(self.client))
        self._sockets.close(linger_ms=LEAVE_MS if lives else 0)


def _without_times(message: to_engine.ToEngine) -> to_engine.ToEngine:
    """The message for an engine whose clock may be another: it takes the time when it gets it."""
    match message:
        case to_engine.AddGroup(requests):
            for request in requests:
                request.arrival_time = None
        case to_engine.Call(number, call):
            return to_engine.Call(number, call)
    return message


async def first_word(link: Link) -> to_client.Ready:
    """The first message of an engine to this client. Raises EngineStartError if the engine cannot be loaded."""
    message = asyncio.ensure_future(_first_message(link))
    ended = asyncio.ensure_future(link.ended())
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
        for task in (message, ended):
            task.cancel()
        await asyncio.gather(message, ended, return_exceptions=True)


async def _first_message(link: Link) -> to_client.ToClient:
    errors = WireErrors("client")
    while True:
        try:
            return await link.receive()
        except WireError as error:
            errors.note(error)


class ProcessLink:
    """A `Link` to an engine process that this object starts and ends."""

    def __init__(self, process: asyncio.subprocess.Process, socket_dir: str) -> None:
        self.process = process
        self.socket_dir = socket_dir
        self._sockets = EngineSockets(input_address(socket_dir), output_address(socket_dir, 0))

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self.process.pid

    @classmethod
    async def open(cls, engine_args: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> ProcessLink:
        """Start the engine process. It imports its libraries while it waits for `launch`. environment: of the process;
        None: that of this process."""
        socket_dir = tempfile.mkdtemp(prefix="headway-")
        if len(socket_dir) > MAX_SOCKET_DIR:
            os.rmdir(socket_dir)
            socket_dir = tempfile.mkdtemp(prefix="headway-", dir="/tmp")
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "headway.engine.process", "--socket-dir", socket_dir, *engine_args),
                stdin=asyncio.subprocess.PIPE,
                env=environment,
                stdout=2,  # standard output is for people: what libraries print goes to standard error
                start_new_session=True,  # Ctrl-C in the terminal reaches only the parent
            )
        except BaseException:
            shutil.rmtree(socket_dir, ignore_errors=True)
            raise
        return cls(process, socket_dir)

    def launch(
        self,
        config: EngineConfig,
        limits: ModelLimits,
        *,
        paused: bool = False,
        listen: str | None = None,
        tells_cache: bool = False,
    ) -> None:
        """Tell the process what to run. Standard input stays open: its end tells the process that the parent is
        gone. paused: whether the engine begins paused. listen, tells_cache: see `Launch`."""
        assert self.process.stdin is not None
        launch = Launch(config, limits, self.socket_dir, paused=paused, listen=listen, tells_cache=tells_cache)
        line = msgspec.json.encode(launch)
        self.process.stdin.write(line + b"\n")

    async def wait_ready(self) -> to_client.Ready:
        """The first message of the engine. Raises EngineStartError if the engine cannot be loaded."""
        return await first_word(self)

    def send(self, message: to_engine.ToEngine) -> None:
        self._sockets.send(message)

    async def receive(self) -> to_client.ToClient:
        return await self._sockets.receive()

    async def ended(self) -> str:
        status = await self.process.wait()
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def kill(self) -> None:
        """End the process by force, also while `close` waits for it."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    async def close(self, *, kill: bool = False) -> None:
        """End the process, close the sockets, remove their folder. Idempotent.

        kill: end the process by force at once, not only if it has not ended after EXIT_TIMEOUT seconds.
        """
        if self._sockets.closed:
            return
        process = self.process
        with contextlib.suppress(ProcessLookupError):  # the process may end between any two of these lines
            if process.returncode is None:
                if kill:
                    self.kill()
                else:
                    self.send(to_engine.Shutdown())
                try:
                    await asyncio.wait_for(process.wait(), EXIT_TIMEOUT)
                except TimeoutError:
                    process.kill()
                    await process.wait()
        if process.stdin is not None:
            process.stdin.close()
        self._sockets.close()
        shutil.rmtree(self.socket_dir, ignore_errors=True)
