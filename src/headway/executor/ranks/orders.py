"""What passes between rank 0 and the process of another rank: frames of bytes in two pipes.

    rank 0  -- RankLaunch, then a batch per step (`step_bytes`) -->  standard input of the process
    rank 0  <-- Joining, Loaded, or Failed                       --  its pipe for reports

The end of either pipe says that the other side is gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from headway.config import EngineConfig
from headway.logs import LogFormat

_LENGTH_BYTES = 4


class RankLaunch(msgspec.Struct, frozen=True):
    """What a rank has to be.

    config: of the engine, with the model as a local folder, and max_model_len. meeting: see `rank.meeting_place`.
    makes: what must be the same in all ranks, see `rank.makes`.
    """

    config: EngineConfig
    number: int
    size: int
    meeting: int
    makes: dict[str, str]
    log_format: LogFormat


class Joining(msgspec.Struct, frozen=True, tag=True):
    """The rank is about to look for the others."""


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The rank has its part of the model. Sizes in bytes."""

    weights: int
    kv_cache: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The rank ends. why: in one line. trace: where in the program, of an error that is not the user's."""

    why: str
    trace: str = ""


Report = Joining | Loaded | Failed


def write_frame(pipe: int, data: bytes) -> None:
    """Write `data`; waits for a reader that is slow. Raises OSError if there is no reader."""
    rest = memoryview(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def read_frames(pipe: int) -> Iterator[bytes]:
    """What was written by `write_frame`, until there is no writer."""
    held = bytearray()
    while part := os.read(pipe, 1 << 20):
        held += part
        while len(held) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(held[:_LENGTH_BYTES], "little")
            if len(held) < end:
                break
            yield bytes(held[_LENGTH_BYTES:end])
            del held[:end]
