"""Wire messages as bytes.

Arrays cross as the raw bytes of their memory (one host, one byte order). So a step of a thousand tokens costs the
engine process two copies and no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.error_text import first_line
from headway.wire.to_client import ToClient
from headway.wire.to_engine import ToEngine
from headway.wire.wire_errors import WireError

_DTYPES = frozenset(np.dtype(kind).str for kind in (np.int32, np.int64, np.float32))


def _parts(value: object) -> tuple[str, tuple[int, ...], bytes]:
    """An array as dtype, shape and bytes. Raises NotImplementedError for an object of another type."""
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"cannot send {type(value).__name__}")
    return value.dtype.str, value.shape, value.tobytes()


def _array(_kind: type, parts: tuple[str, tuple[int, ...], bytes]) -> NDArray[Any]:
    """The array of these parts: read-only, on the memory of the message."""
    dtype, shape, data = parts
    if dtype not in _DTYPES:
        raise ValueError(f"arrays of dtype {dtype!r} do not cross")
    array = np.frombuffer(data, dtype)
    if len(shape) == 1 and shape[0] == len(array):
        return array
    if any(size < 0 for size in shape):  # for numpy -1 means "as many as there are"
        raise ValueError(f"an array cannot have the shape {shape}")
    return array.reshape(shape)


encode = msgspec.msgpack.Encoder(enc_hook=_parts).encode
_to_engine = msgspec.msgpack.Decoder(ToEngine, dec_hook=_array)
_to_client = msgspec.msgpack.Decoder(ToClient, dec_hook=_array)


def decode_to_engine(data: bytes) -> ToEngine:
    """The message to the engine in `data`. Raises WireError for other bytes."""
    message: ToEngine = _decode(_to_engine, data)
    return message


def decode_to_client(data: bytes) -> ToClient:
    """The message to an API process in `data`. Raises WireError for other bytes."""
    message: ToClient = _decode(_to_client, data)
    return message


def only_frame(frames: Sequence[bytes]) -> bytes:
    """The one frame of a message of ZeroMQ. Raises WireError for a message of several."""
    if len(frames) != 1:
        raise WireError(f"a message has one frame, got {len(frames)}")
    return frames[0]


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    # Not only DecodeError: a tag that is not UTF-8 is a UnicodeDecodeError, deep nesting a RecursionError, and so on.
    try:
        return decoder.decode(data)
    except Exception as error:
        raise WireError(f"{len(data)} bytes that are no message: {type(error).__name__}: {first_line(error)}") from None
