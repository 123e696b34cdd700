"""Token ids as callers have them, packed as the core wants them.

Handing in must not wait for the interpreter: NumPy lets go of it for whatever it does to more than 500 numbers, and
getting it back can take as long as a turn of the writer's. So prompts of the usual kinds and lengths are copied and
looked through without that.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headway.errors import RequestError

_PIECE = 500  # numbers that NumPy looks through without letting go of the interpreter
_LONGEST_IN_PIECES = 16_384  # tokens; the time for more is better left to others


def pack(prompt: Sequence[int] | NDArray[np.integer], num_token_ids: int) -> NDArray[np.int32]:
    """A read-only copy, int32 [n]; n may be 0. Raises RequestError for what is no flat list of ids below the limit."""
    tokens = _packed_as_it_is(prompt)
    if tokens is None or _largest(tokens) >= num_token_ids:
        tokens = _packed_with_care(prompt, num_token_ids)
    return tokens


def check_token_ids(where: str, tokens: Sequence[int], num_token_ids: int) -> None:
    """Raises RequestError, naming the first that is none."""
    for token in tokens:
        if not isinstance(token, (int, np.integer)) or not 0 <= token < num_token_ids:
            raise RequestError(f"{where} contains token id {token!r}; ids are integers from 0 to {num_token_ids - 1}")


def _packed_as_it_is(prompt: object) -> NDArray[np.int32] | None:
    """An int32 array, or a list of integers that fit one; None for anything else."""
    if isinstance(prompt, np.ndarray):
        if prompt.dtype != np.int32 or prompt.ndim != 1:
            return None
        return np.frombuffer(prompt.tobytes(), np.int32)
    if not isinstance(prompt, (list, tuple)) or (prompt and isinstance(prompt[0], bool)):
        return None
    try:
        tokens = np.frombuffer(array("i", prompt), np.int32)
    except (TypeError, ValueError, OverflowError):  # whoever takes a closer look says what is wrong
        return None
    tokens.flags.writeable = False
    return tokens


def _largest(tokens: NDArray[np.int32]) -> int:
    """The largest id, where a negative one counts as larger than any; -1 of none."""
    unsigned = tokens.view(np.uint32)
    piece = _PIECE if len(tokens) <= _LONGEST_IN_PIECES else len(tokens)
    return max((int(np.maximum.reduce(unsigned[i : i + piece])) for i in range(0, len(tokens), piece)), default=-1)


def _packed_with_care(prompt: object, num_token_ids: int) -> NDArray[np.int32]:
    try:
        wide = np.array(prompt)
    except (OverflowError, ValueError, TypeError) as error:
        raise RequestError(f"the prompt is not a list of token ids: {error}") from None
    if not wide.size:
        wide = np.zeros(0, dtype=np.int32)
    elif wide.ndim != 1 or not np.issubdtype(wide.dtype, np.integer):
        raise RequestError(f"the prompt must be a flat list of integers, got {wide.ndim}-d {wide.dtype}")
    else:
        check_token_ids("the prompt", (int(wide.min()), int(wide.max())), num_token_ids)
    tokens = wide.astype(np.int32, copy=False)
    tokens.flags.writeable = False
    return tokens
