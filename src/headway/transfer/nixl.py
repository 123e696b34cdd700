"""NIXL, an extra: P writes the blocks that D asks for into D's memory.

    D   Reach           -->     once: what P needs to write here
        Write           -->
              <--  the bytes and then a note, both by NIXL; or Refused
        Written         -->

Why P writes, and D does not read: UCX ends P's process when D closes its agent in the middle of a read over TCP.
A write fails there as it should. D's fence is the end of its agent: neither the end of a registration nor the release
of a transfer is one. It holds where the bytes pass D's agent or D's network card; so the ways of UCX by which P copies
straight into the memory of another process are turned off. There is one agent for each peer on both sides.

The threads that wait drive NIXL themselves: its own thread would take a whole core, also when nothing travels.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.error_text import first_line
from headway.scheduler.batch import IntArray
from headway.transfer import handshake
from headway.transfer.channel import Channel
from headway.transfer.layout import KVLayout
from headway.transfer.memory import KVMemory
from headway.transfer.messages import AnyMessage, MessageError, Purpose, Reach, Read, Refused, Write, Written
from headway.transfer.reader import ReadError, Slice, runs
from headway.transfer.tcp import connect_further

_LIBRARIES = ("nixl_cu12", "nixl_cu13")  # the same API; on a CPU either will do
_PAST_THE_AGENT = ("cma", "knem", "xpmem")  # of UCX: P copies into D's memory, whether D's agent is closed or not
_WIDER = ("all", "sm", "shm")  # names of UCX that include them
_LEAST_PAUSE, _MOST_PAUSE = 2e-5, 2e-3  # seconds between two looks

Ranges = NDArray[np.uint64]


def prepare(*, on_loopback: bool) -> None:
    """Load NIXL, and tell UCX its limits by the environment. To be called once, before the first agent.

    on_loopback: all peers are on this host: UCX listens on loopback alone.
    Raises ValueError, with the remedy, if NIXL is not installed or UCX_TLS allows what cannot be fenced.
    """
    chosen = os.environ.setdefault("UCX_TLS", "^" + ",".join(_PAST_THE_AGENT))
    names = set(chosen.removeprefix("^").split(","))
    if chosen.startswith("^"):
        unfenced = set() if names & {*_WIDER} else {*_PAST_THE_AGENT} - names
    else:
        unfenced = names & {*_PAST_THE_AGENT, *_WIDER}
    if unfenced:
        listed = ", ".join(sorted(unfenced))
        raise ValueError(f"UCX_TLS={chosen} allows {listed}: a late write could not be stopped. Leave UCX_TLS unset")
    if on_loopback:
        os.environ.setdefault("UCX_NET_DEVICES", "lo")
    os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
    _library()


def is_installed() -> bool:
    """Whether NIXL is there; it is not loaded."""
    return any(importlib.util.find_spec(name) for name in _LIBRARIES)


def _library() -> ModuleType:
    for name in _LIBRARIES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ValueError(f"NIXL is installed and cannot be loaded: {first_line(error)}") from None
    raise ValueError("the KV transport nixl needs an extra: pip install 'headway[nixl]'")


class NixlError(OSError):
    """NIXL has failed."""


class Agent:
    """One agent of NIXL, and the KV memory of this engine, registered with it. One thread uses it at a time.

    metadata: what the agent of a peer needs. Its methods raise NixlError.
    """

    def __init__(self, memory: KVMemory) -> None:
        self.memory = memory
        self._transfer: Any = None
        library = _library()
        with _failures():
            setting = library.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
            self._agent = library.nixl_agent(f"headway-{os.urandom(16).hex()}", setting)
            self._agent.register_memory([(memory.address, memory.layout.total_bytes, 0, "")], "DRAM")
            self.metadata: bytes = self._agent.get_agent_metadata()

    def reach(self, metadata: bytes) -> str:
        """Get ready to write to a peer. Returns its name."""
        with _failures():
            name: str = self._agent.add_remote_agent(metadata).decode()
            return name

    def begin_write(self, mine: Ranges, peer: str, theirs: Ranges, note: bytes) -> None:
        """Write ranges of memory to equally long ranges of a peer, and then a note. `drive` must follow."""
        agent = self._agent
        with _failures():
            here, there = agent.get_xfer_descs(mine, "DRAM"), agent.get_xfer_descs(theirs, "DRAM")
            self._transfer = agent.initialize_xfer("WRITE", here, there, peer, note)
            self._check(agent.transfer(self._transfer))

    def drive(self) -> list[bytes]:
        """Let things go on. Returns the notes that have come: all that was written before a note is there."""
        with _failures():
            if self._transfer is not None:
                self._check(self._agent.check_xfer_state(self._transfer))
            notes: dict[str, list[bytes]] = self._agent.get_new_notifs()
        return [note for of_peer in notes.values() for note in of_peer]

    def end_write(self) -> None:
        """The peer has all of it."""
        self._transfer = None  # releases it

    def close(self) -> None:
        """After that, nothing is written to the memory of this agent any more. Idempotent."""
        self._transfer = None
        self._agent.agent = None  # the library's own object ends here, whatever else still knows its wrapper

    def _check(self, state: str) -> None:
        if state == "ERR":
            raise NixlError("NIXL says that a write has failed")


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """The errors of NIXL have no base class of their own."""
    try:
        yield
    except NixlError:
        raise
    except Exception as error:
        raise NixlError(f"NIXL has failed: {type(error).__name__}: {first_line(error)}") from None


class NixlReader:
    """A `Reader`, with an agent of its own.

    Raises OSError, MessageError or RefusedError, when it is made, if the peer does not take it.
    """

    def __init__(self, host: str, port: int, memory: KVMemory, secret: bytes | None) -> None:
        self._agent = Agent(memory)
        self._num_asked = 0
        try:
            self._channel = connect_further(host, port, memory.layout, secret, Purpose.NIXL)
            self._channel.send(Reach(self._agent.metadata, memory.address))
        except BaseException:
            self._agent.close()
            raise

    def read(self, part: Slice) -> None:
        """See `Reader`."""
        self._num_asked += 1
        read = Read(part.reference, part.generation, part.first, len(part.sources))
        try:
            self._channel.send(Write(read, self._num_asked, part.targets.astype("<i4").tobytes()))
            refused = self._wait(_note(self._num_asked))
            if refused is None:
                self._channel.send(Written())
        except BaseException:
            self._agent.close()  # P may be in the middle of it
            raise
        if refused is not None:
            raise ReadError(refused.reason[:600])

    def interrupt(self) -> None:
        """See `Reader`."""
        self._channel.interrupt()

    def close(self) -> None:
        """See `Reader`."""
        self._agent.close()
        self._channel.close()

    def _wait(self, note: bytes) -> Refused | None:
        for pause in _pauses():
            if note in self._agent.drive():
                return None
            if self._channel.is_readable(0.0):
                answer = self._channel.receive(handshake.SECONDS)
                if isinstance(answer, Refused):
                    return answer
                raise MessageError(f"{type(answer).__name__} came where the bytes of blocks were expected")
            time.sleep(pause)
        raise AssertionError("pauses have no end")


def serve_writes(
    channel: Channel,
    memory: KVMemory,
    theirs: KVLayout,
    readable: Callable[[Read], IntArray],
    on_sent: Callable[[int], None],
) -> None:
    """P: answer what comes on the connection of a `NixlReader`, until it ends.

    theirs: the layout of D. readable, on_sent, errors: as of `tcp.serve_reads`; and NixlError.
    """
    reach = _expect(channel.receive(handshake.SECONDS), Reach)
    channel.wait_long()
    agent = Agent(memory)
    try:
        peer = agent.reach(reach.metadata)
        while True:
            write = _expect(channel.receive(None), Write)
            targets = _targets(write, theirs)
            try:
                sources = readable(write.read)
            except ValueError as error:
                channel.send(Refused(str(error)))
                continue
            first, to, count = runs(sources, targets)
            here = _ranges(memory.address, memory.layout, first, count)
            agent.begin_write(here, peer, _ranges(reach.address, theirs, to, count), _note(write.number))
            for pause in _pauses():
                agent.drive()  # also when all is sent: the note may still be on its way
                if channel.is_readable(0.0):
                    break
                time.sleep(pause)
            _expect(channel.receive(handshake.SECONDS), Written)
            agent.end_write()
            on_sent(len(targets) * memory.layout.block_bytes)
    finally:
        agent.close()


def _expect(message: AnyMessage, kind: type[Any]) -> Any:
    if not isinstance(message, kind):
        raise MessageError(f"{type(message).__name__} came where {kind.__name__} was expected")
    return message


def _targets(write: Write, theirs: KVLayout) -> IntArray:
    """The blocks of D. Raises MessageError if these are not blocks of D, or not as many as it asks for."""
    if len(write.targets) != 4 * write.read.count:
        raise MessageError(
            f"{write.read.count} blocks were asked for, and {len(write.targets)} bytes name their targets"
        )
    targets: IntArray = np.frombuffer(write.targets, "<i4")
    if not 0 <= int(targets.min()) <= int(targets.max()) < theirs.num_blocks:
        raise MessageError(f"a target is not among the {theirs.num_blocks} blocks of the peer")
    return targets


def _ranges(address: int, layout: KVLayout, first: IntArray, count: IntArray) -> Ranges:
    """uint64 [parts * runs, 3]: address, bytes and device of these runs of blocks, in each part."""
    offsets, sizes = (np.array(one, np.int64)[:, None] for one in (layout.part_offsets, layout.part_bytes))
    rows = np.zeros((offsets.size * first.size, 3), np.uint64)
    rows[:, 0] = (address + offsets + sizes * first).ravel()
    rows[:, 1] = (sizes * count).ravel()
    return rows


def _note(number: int) -> bytes:
    return b"%d" % number


def _pauses() -> Iterator[float]:
    """Seconds to sleep between two looks, without end: the longer it lasts, the less it matters."""
    begin = time.monotonic()
    while True:
        yield min(_MOST_PAUSE, max(_LEAST_PAUSE, (time.monotonic() - begin) / 32))
