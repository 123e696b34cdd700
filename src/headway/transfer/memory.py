"""The KV memory of an engine on a CPU, and the mapping of the KV memory of a peer on the same host."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.transfer.layout import KVLayout

Bytes = NDArray[np.uint8]

_SHRINK = fcntl.F_SEAL_SHRINK if hasattr(fcntl, "F_SEAL_SHRINK") else 0x2
_GROW = fcntl.F_SEAL_GROW if hasattr(fcntl, "F_SEAL_GROW") else 0x4
_FUTURE_WRITE = 0x10
_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)


class MemoryHandle(msgspec.Struct, frozen=True, array_like=True):
    """Where a process of the same host finds a memory: a file descriptor of a process, and a name that proves it."""

    pid: int
    fd: int
    name: str


class KVMemory:
    """Memory for KV blocks that a peer on this host can map. It starts as zeros.

    It lies in a memfd: no file system has it, so a process that is killed leaves nothing. Its size is sealed, so no
    peer that reads it can be killed by a shorter file; peers can map it for reading only.

    parts: uint8 [num_blocks, bytes], one for each part of the layout. planes: the same memory, as uint8 [number of
    parts, num_blocks, bytes] for each plane of the layout: so a block, or a run of blocks, is copied at once.
    Raises OSError if the system gives no such memory.
    """

    def __init__(self, layout: KVLayout) -> None:
        self.layout = layout
        self._name = f"headway-kv-{os.urandom(16).hex()}"
        self._fd = os.memfd_create(self._name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, layout.total_bytes)
            fcntl.fcntl(self._fd, _ADD_SEALS, _SHRINK | _GROW)
            self._map = mmap.mmap(self._fd, layout.total_bytes)
            with contextlib.suppress(OSError):  # before Linux 5.1: peers are asked to map it for reading, and do
                fcntl.fcntl(self._fd, _ADD_SEALS, _FUTURE_WRITE)
        except BaseException:
            os.close(self._fd)
            raise
        self.parts = _parts(self._map, layout)
        self.planes = _planes(self._map, layout)

    @property
    def whole(self) -> memoryview:
        """All of it, as bytes."""
        return memoryview(self._map)

    @property
    def address(self) -> int:
        """Where it begins in this process."""
        return int(np.frombuffer(self._map, np.uint8).ctypes.data)

    def handle(self) -> MemoryHandle:
        """For a peer on this host."""
        return MemoryHandle(os.getpid(), self._fd, self._name)

    def close(self) -> None:
        """No peer can map it any more. Its bytes stay as long as an array or a peer uses them. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class PeerMemory:
    """The KV memory of a peer, read-only. parts, planes: as in `KVMemory`.

    Raises OSError if the memory is not on this host, is of another user, or is not what the handle names.
    """

    def __init__(self, handle: MemoryHandle, layout: KVLayout) -> None:
        self.layout = layout
        path = Path(f"/proc/{handle.pid}/fd/{handle.fd}")
        # The name holds 128 random bits: no file of another process can be meant, nor opened.
        if not handle.name.startswith("headway-kv-") or os.readlink(path) != f"/memfd:{handle.name} (deleted)":
            raise FileNotFoundError(f"{path} is not the KV memory {handle.name!r}")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size, seals = os.fstat(fd).st_size, fcntl.fcntl(fd, _GET_SEALS)
            if size != layout.total_bytes or not seals & _SHRINK:
                raise OSError(f"the KV memory {handle.name!r} has {size} bytes, {layout.total_bytes} were to be sealed")
            mapped = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
        self.parts = _parts(mapped, layout)
        self.planes = _planes(mapped, layout)

    def close(self) -> None:
        """Unmap it, as soon as no array uses it."""
        self.parts = self.planes = ()


def _parts(mapped: mmap.mmap, layout: KVLayout) -> tuple[Bytes, ...]:
    whole = np.frombuffer(mapped, np.uint8)
    return tuple(
        whole[offset : offset + size * layout.num_blocks].reshape(layout.num_blocks, size)
        for offset, size in zip(layout.part_offsets, layout.part_bytes, strict=True)
    )


def _planes(mapped: mmap.mmap, layout: KVLayout) -> tuple[Bytes, ...]:
    offsets, sizes, planes = layout.part_offsets, layout.part_bytes, []
    for first, count in layout.planes:
        size = sizes[first]
        apart = offsets[first + 1] - offsets[first] if count > 1 else size * layout.num_blocks
        shape, strides = (count, layout.num_blocks, size), (apart, size, 1)
        planes.append(np.ndarray(shape, np.uint8, mapped, offsets[first], strides))
    return tuple(planes)
