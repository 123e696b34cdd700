"""What a request tells the connector that moves its KV, opaque to Headway: a small JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headway.errors import RequestError

MAX_BYTES = 16 * 2**10  # of its JSON


def copied(params: object) -> dict[str, Any]:
    """A copy that its owner cannot change. Raises RequestError, naming value and limit, for no small JSON object."""
    if not isinstance(params, Mapping):
        raise RequestError(f"kv_transfer_params must be a mapping, got {type(params).__name__}")
    try:
        text = json.dumps(dict(params), allow_nan=False, ensure_ascii=False)
        num_bytes = len(text.encode())  # raises for half of a surrogate pair, which no message can carry
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"kv_transfer_params cannot be written as JSON: {error}") from None
    if num_bytes > MAX_BYTES:
        raise RequestError(f"kv_transfer_params has {num_bytes} bytes of JSON; at most {MAX_BYTES} are taken")
    copy: dict[str, Any] = json.loads(text, parse_int=_int64)
    return copy


def _int64(digits: str) -> int:
    value = int(digits)
    if not -(2**63) <= value < 2**63:
        raise RequestError(f"kv_transfer_params contains {digits}; integers are from {-(2**63)} to {2**63 - 1}")
    return value
