"""Token ids as callers have them, packed as the core wants them: checked, int32, unchangeable.

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

NUM_INT32 = 2**31  # the number of token ids where no vocabulary says less

_PIECE = 500  # numbers that NumPy looks through without letting go of the interpreter
_LONGEST_IN_PIECES = 16_384  # tokens; the time for more is better left to others


def pack(
    token_ids: Sequence[int] | NDArray[np.integer], num_token_ids: int, what: str = "the prompt"
) -> NDArray[np.int32]:
    """int32 [n] in memory that can never change; n may be 0. Token ids that are packed already are not copied.

    num_token_ids: ids go from 0 to one less. what: the name of the token ids in an error.
    Raises RequestError for anything but a flat list of such ids.
    """
    tokens = _packed_as_it_is(token_ids)
    if tokens is None or _largest(tokens) >= num_token_ids:
        tokens = _packed_with_care(token_ids, num_token_ids, what)
    return tokens


def check_not_empty(prompt: NDArray[np.int32]) -> None:
    """Raises RequestError for a prompt without tokens."""
    if not len(prompt):
        raise RequestError("the prompt is empty; at least 1 token is needed")


def check_token_ids(where: str, tokens: Sequence[int], num_token_ids: int) -> None:
    """Raises RequestError that names the first item which is no token id."""
    for token in tokens:
        if not isinstance(token, (int, np.integer)) or not 0 <= token < num_token_ids:
            raise RequestError(f"{where} contains token id {token!r}; ids are integers from 0 to {num_token_ids - 1}")


def _packed_as_it_is(token_ids: object) -> NDArray[np.int32] | None:
    """An int32 array, or a list of integers that fit one; None for anything else."""
    if isinstance(token_ids, np.ndarray):
        if token_ids.dtype != np.int32 or token_ids.ndim != 1:
            return None
        # An array over a bytes object is unchangeable; a view of an array is not, though it may be read-only itself.
        return token_ids if isinstance(token_ids.base, bytes) else np.frombuffer(token_ids.tobytes(), np.int32)
    if not isinstance(token_ids, (list, tuple)) or (token_ids and isinstance(token_ids[0], bool)):
        return None
    try:
        return np.frombuffer(array("i", token_ids).tobytes(), np.int32)
    except (TypeError, ValueError, OverflowError):  # `_packed_with_care` says what is wrong
        return None


def _largest(tokens: NDArray[np.int32]) -> int:
    """The largest id, where a negative one counts as larger than any; -1 of none."""
    unsigned = tokens.view(np.uint32)
    piece = _PIECE if len(tokens) <= _LONGEST_IN_PIECES else len(tokens)
    largest = -1
    for start in range(0, len(tokens), piece):
        largest = max(largest, int(np.maximum.reduce(unsigned[start : start + piece])))
    return largest


def _packed_with_care(token_ids: object, num_token_ids: int, what: str) -> NDArray[np.int32]:
    try:
        wide = np.array(token_ids)
    except (OverflowError, ValueError, TypeError) as error:
        raise RequestError(f"{what} is not a list of token ids: {error}") from None
    if not wide.size:
        return np.frombuffer(b"", np.int32)
    if wide.ndim != 1 or not np.issubdtype(wide.dtype, np.integer):
        raise RequestError(f"{what} must be a flat list of integers, got {wide.ndim}-d {wide.dtype}")
    check_token_ids(what, (int(wide.min()), int(wide.max())), num_token_ids)
    return np.frombuffer(wide.astype(np.int32).tobytes(), np.int32)
