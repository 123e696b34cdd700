"""Which of several engines computes a prompt: the engine with most of it in its cache, unless others have much less to
do. Plain rules, without I/O."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

PIECE = 64  # tokens; prefixes are told apart by whole pieces
MAX_PIECES = 65_536  # that are remembered of each engine
OUT_SECONDS = 5.0  # that an engine is left out after a failure, if another can be asked


class PrefillChoice:
    """Knows of each engine, by its index: what it was asked to compute, and what it computes now. For one event loop.

    Times are seconds on any clock.
    """

    def __init__(self, num_engines: int) -> None:
        self._seen: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in range(num_engines)]
        self._waiting = [0] * num_engines  # tokens
        self._out_until = [0.0] * num_engines

    def order(self, token_ids: Sequence[int], now: float) -> list[int]:
        """The engines to ask, the best first: by tokens to compute before the first token of this prompt is there.
        Engines that have just failed come last."""
        pieces = _pieces(token_ids)

        def cost(engine: int) -> tuple[bool, int, int]:
            known = next((i for i, piece in enumerate(pieces) if piece not in self._seen[engine]), len(pieces))
            return self._out_until[engine] > now, self._waiting[engine] - known * PIECE, engine

        return sorted(range(len(self._seen)), key=cost)

    def begin(self, engine: int, token_ids: Sequence[int]) -> None:
        """The engine is asked for this prompt."""
        self._waiting[engine] += len(token_ids)
        seen = self._seen[engine]
        for piece in _pieces(token_ids):
            seen[piece] = None
            seen.move_to_end(piece)
        while len(seen) > MAX_PIECES:
            seen.popitem(last=False)

    def end(self, engine: int, token_ids: Sequence[int], *, failed: bool, now: float) -> None:
        """The engine has answered, or failed. After a failure nothing is known of its cache."""
        self._waiting[engine] -= len(token_ids)
        if failed:
            self._seen[engine].clear()
            self._out_until[engine] = now + OUT_SECONDS


def _pieces(token_ids: Sequence[int]) -> list[bytes]:
    """A digest for each leading part of whole pieces."""
    data = np.asarray(token_ids, "<i4")
    digest, pieces = hashlib.blake2b(digest_size=16), []
    for end in range(PIECE, len(data) + 1, PIECE):
        digest.update(data[end - PIECE : end].tobytes())
        pieces.append(digest.digest())
    return pieces
