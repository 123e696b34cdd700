"""Reads blocks of a peer over TCP, straight into their place, with a checksum per block.

    D   Read            -->
          <--   Reading, and groups of blocks:  uint32 crc32 [n], little endian, then the bytes of n blocks

The bytes of a block are its parts in order. Both sides know the size of a group by the layout.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from headway.scheduler.batch import IntArray
from headway.transfer import handshake
from headway.transfer.channel import Channel
from headway.transfer.layout import KVLayout
from headway.transfer.memory import KVMemory
from headway.transfer.messages import AnyMessage, MessageError, Read, Reading, Refused
from headway.transfer.reader import ReadError, Slice

_GROUP_BYTES = 2**20  # so that one side computes checksums while the other still moves bytes
CONNECT_SECONDS = 5.0


def connect(host: str, port: int) -> Channel:
    """A connection to a peer. Raises OSError."""
    return Channel(socket.create_connection((host, port), CONNECT_SECONDS))


class TcpReader:
    """A `Reader` with a connection of its own. Several of them are several streams.

    Raises OSError, MessageError or RefusedError, when it is made, if the peer does not take it.
    """

    def __init__(self, host: str, port: int, memory: KVMemory, secret: bytes | None) -> None:
        self._memory = memory
        self._channel = connect(host, port)
        try:
            handshake.greet(self._channel, memory.layout, secret, reads=True)
        except BaseException:
            self._channel.close()
            raise
        self._channel.wait_long()

    def read(self, part: Slice) -> None:
        """See `Reader`."""
        channel = self._channel
        channel.send(Read(part.reference, part.generation, part.first, len(part.sources)))
        answer = channel.receive(None)
        if isinstance(answer, Refused):
            raise ReadError(answer.reason[:600])
        if not isinstance(answer, Reading) or answer.count != len(part.targets):
            raise MessageError(f"{len(part.targets)} blocks were asked for, and the answer is {answer!r:.100}")
        num_damaged = 0
        for blocks in _groups(self._memory.layout, part.targets):
            sums = np.empty(len(blocks), "<u4")
            views = _views(self._memory, blocks)
            channel.receive_bytes([sums.data.cast("B"), *(view for block in views for view in block)])
            num_damaged += sum(_checksum(block) != int(expected) for block, expected in zip(views, sums, strict=True))
        if num_damaged:
            raise ReadError(f"{num_damaged} of {len(part.targets)} blocks have come with a wrong checksum")

    def interrupt(self) -> None:
        """See `Reader`."""
        self._channel.interrupt()

    def close(self) -> None:
        """See `Reader`."""
        self._channel.close()


def serve_reads(
    channel: Channel, memory: KVMemory, readable: Callable[[Read], IntArray], on_sent: Callable[[int], None]
) -> None:
    """P: answer what comes on the connection of a `TcpReader`, until it ends.

    readable: the blocks that a `Read` may have; raises ValueError, saying why, if there is any that it may not.
    on_sent: gets the number of bytes. Raises OSError when the connection ends, MessageError for anything but a `Read`.
    """
    channel.wait_long()
    while True:
        answer = _answer(channel.receive(None), readable)
        if isinstance(answer, Refused):
            channel.send(answer)
            continue
        channel.send(Reading(len(answer)))
        for blocks in _groups(memory.layout, answer):
            views = _views(memory, blocks)
            sums = np.array([_checksum(block) for block in views], "<u4")
            channel.send_bytes([sums.data.cast("B"), *(view for block in views for view in block)])
            on_sent(len(blocks) * memory.layout.block_bytes)


def _answer(message: AnyMessage, readable: Callable[[Read], IntArray]) -> IntArray | Refused:
    if not isinstance(message, Read):
        raise MessageError(f"{type(message).__name__} came where Read was expected")
    try:
        return readable(message)
    except ValueError as error:
        return Refused(str(error))


def _groups(layout: KVLayout, blocks: IntArray) -> Iterator[list[int]]:
    size = max(1, _GROUP_BYTES // layout.block_bytes)
    for start in range(0, len(blocks), size):
        yield blocks[start : start + size].tolist()


def _views(memory: KVMemory, blocks: list[int]) -> list[list[memoryview]]:
    """The parts of each block, in order."""
    return [[memoryview(part[block]) for part in memory.parts] for block in blocks]


def _checksum(block: list[memoryview]) -> int:
    value = 0
    for view in block:
        value = zlib.crc32(view, value)
    return value
