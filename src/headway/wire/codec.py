"""Wire messages as bytes.

Arrays cross as the raw bytes of their memory (one host, one byte order). So a step of a thousand tokens costs the
engine process two copies and no loop.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.wire.to_client import ToClient
from headway.wire.to_engine import ToEngine


def _parts(value: object) -> tuple[str, tuple[int, ...], bytes]:
    """An array as dtype, shape and bytes. Raises NotImplementedError for an object of another type."""
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"cannot send {type(value).__name__}")
    return value.dtype.str, value.shape, value.tobytes()


def _array(_kind: type, parts: tuple[str, tuple[int, ...], bytes]) -> NDArray[Any]:
    """The array of these parts: read-only, on the memory of the message."""
    dtype, shape, data = parts
    array = np.frombuffer(data, dtype)
    return array if len(shape) == 1 else array.reshape(shape)


encode = msgspec.msgpack.Encoder(enc_hook=_parts).encode
_to_engine = msgspec.msgpack.Decoder(ToEngine, dec_hook=_array)
_to_client = msgspec.msgpack.Decoder(ToClient, dec_hook=_array)


def decode_to_engine(data: bytes) -> ToEngine:
    """The message to the engine in `data`. Raises msgspec.DecodeError (a ValueError) for other bytes."""
    message: ToEngine = _to_engine.decode(data)
    return message


def decode_to_client(data: bytes) -> ToClient:
    """The message to an API process in `data`. Raises msgspec.DecodeError (a ValueError) for other bytes."""
    message: ToClient = _to_client.decode(data)
    return message
