"""Reads blocks of a peer over TCP, with a checksum per block. Only what has come whole is written to its place.

    D   Read            -->
          <--   Reading, and groups of blocks:  uint32 crc32 [n], little endian, then the bytes of n blocks

The bytes of a block are its parts in order. Both sides know the size of a group by the layout.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from headway.scheduler.batch import IntArray
from headway.transfer import handshake
from headway.transfer.channel import Channel
from headway.transfer.layout import KVLayout
from headway.transfer.memory import KVMemory
from headway.transfer.messages import AnyMessage, MessageError, Purpose, Read, Reading, Refused
from headway.transfer.reader import ReadError, Slice

_GROUP_BYTES = 2**19  # so that one side computes checksums while the other still moves bytes
CONNECT_SECONDS = 5.0


def connect(host: str, port: int) -> Channel:
    """A connection to a peer. Raises OSError."""
    return Channel(socket.create_connection((host, port), CONNECT_SECONDS))


def connect_further(host: str, port: int, layout: KVLayout, secret: bytes | None, purpose: Purpose) -> Channel:
    """A further connection to a peer, after its handshake, for blocks; a transfer on it may take long.

    Raises OSError, MessageError or RefusedError if the peer does not take it.
    """
    channel = connect(host, port)
    try:
        handshake.greet(channel, layout, secret, purpose=purpose)
    except BaseException:
        channel.close()
        raise
    channel.wait_long()
    return channel


class TcpReader:
    """A `Reader` with a connection of its own. Several of them are several streams.

    Raises OSError, MessageError or RefusedError, when it is made, if the peer does not take it.
    """

    def __init__(self, host: str, port: int, memory: KVMemory, secret: bytes | None) -> None:
        self._memory = memory
        self._channel = connect_further(host, port, memory.layout, secret, Purpose.TCP)
        self._group = _Group(memory)

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
            channel.receive_bytes(self._group.buffers(len(blocks)))
            num_damaged += self._group.store(blocks)
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
    group = _Group(memory)
    while True:
        answer = _answer(channel.receive(None), readable)
        if isinstance(answer, Refused):
            channel.send(answer)
            continue
        channel.send(Reading(len(answer)))
        for blocks in _groups(memory.layout, answer):
            group.load(blocks)
            channel.send_bytes(group.buffers(len(blocks)))
            on_sent(len(blocks) * memory.layout.block_bytes)


def _answer(message: AnyMessage, readable: Callable[[Read], IntArray]) -> IntArray | Refused:
    if not isinstance(message, Read):
        raise MessageError(f"{type(message).__name__} came where Read was expected")
    try:
        return readable(message)
    except ValueError as error:
        return Refused(str(error))


def _groups(layout: KVLayout, blocks: IntArray) -> Iterator[list[int]]:
    size = _group_size(layout)
    for start in range(0, len(blocks), size):
        yield blocks[start : start + size].tolist()


def _group_size(layout: KVLayout) -> int:
    return max(1, _GROUP_BYTES // layout.block_bytes)


class _Group:
    """The bytes of a few blocks, one after the other, on their way: the checksum of a block is one call then, and its
    copy too. Used again and again: fresh memory would cost as much as the copy.

    data: uint8 [most blocks, block_bytes]. sums: uint32 [most blocks], little endian.
    """

    def __init__(self, memory: KVMemory) -> None:
        size = _group_size(memory.layout)
        self._memory = memory
        self._sums = np.empty(size, "<u4")
        self._data = np.empty((size, memory.layout.block_bytes), np.uint8)

    def load(self, blocks: list[int]) -> None:
        """Take these blocks from memory."""
        for index, block in enumerate(blocks):
            row = self._data[index]
            for mine, plane in zip(self._rows(row), self._memory.planes, strict=True):
                np.copyto(mine, plane[:, block])
            self._sums[index] = _checksum(row)

    def store(self, blocks: list[int]) -> int:
        """Put the blocks that have come into memory. Returns the number of damaged blocks, which are left out."""
        num_damaged = 0
        for index, block in enumerate(blocks):
            row = self._data[index]
            if _checksum(row) != int(self._sums[index]):
                num_damaged += 1
                continue
            for mine, plane in zip(self._rows(row), self._memory.planes, strict=True):
                np.copyto(plane[:, block], mine)
        return num_damaged

    def buffers(self, count: int) -> list[memoryview]:
        """What travels of this many blocks, in order."""
        return [self._sums[:count].data.cast("B"), self._data[:count].data.cast("B")]

    def _rows(self, row: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """The bytes of one block as [number of parts, bytes], for each plane."""
        start = 0
        for plane in self._memory.planes:
            count, _, size = plane.shape
            yield row[start : start + count * size].reshape(count, size)
            start += count * size


def _checksum(row: NDArray[np.uint8]) -> int:
    return zlib.crc32(row.data)
