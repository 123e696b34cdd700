"""Which of several engines computes a prompt: the engine with most of it in its cache, unless others have much less to
do. Plain rules, without I/O."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PIECE = 64  # tokens; prefixes are told apart by whole pieces
MAX_PIECES = 65_536  # that are remembered of each engine
OUT_SECONDS = 5.0  # that an engine is left out after a failure, if another can be asked


class Prefixes(NamedTuple):
    """A prompt, as far as the choice depends on it. digests: of each leading part of whole pieces."""

    num_tokens: int
    digests: list[bytes]

    @classmethod
    def of(cls, token_ids: Sequence[int]) -> Prefixes:
        """Of this prompt."""
        data = np.asarray(token_ids, "<i4")
        digest, digests = hashlib.blake2b(digest_size=16), []
        for end in range(PIECE, len(data) + 1, PIECE):
            digest.update(data[end - PIECE : end].tobytes())
            digests.append(digest.digest())
        return cls(len(data), digests)


class PrefillChoice:
    """Knows of each engine, by its index: what it was asked to compute, and what it computes now. For one event loop.

    Times are seconds on any clock.
    """

    def __init__(self, num_engines: int) -> None:
        self._seen: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in range(num_engines)]
        self._waiting = [0] * num_engines  # tokens
        self._out_until = [0.0] * num_engines

    def order(self, prompt: Prefixes, now: float) -> list[int]:
        """The engines to ask, the best first: by tokens to compute before the first token of this prompt is there.
        Engines that have just failed come last."""

        def cost(engine: int) -> tuple[bool, int, int]:
            seen, digests = self._seen[engine], prompt.digests
            known = next((i for i, digest in enumerate(digests) if digest not in seen), len(digests))
            return self._out_until[engine] > now, self._waiting[engine] - known * PIECE, engine

        return sorted(range(len(self._seen)), key=cost)

    def begin(self, engine: int, prompt: Prefixes) -> None:
        """The engine is asked for this prompt."""
        self._waiting[engine] += prompt.num_tokens
        seen = self._seen[engine]
        for digest in prompt.digests:
            seen[digest] = None
            seen.move_to_end(digest)
        while len(seen) > MAX_PIECES:
            seen.popitem(last=False)

    def end(self, engine: int, prompt: Prefixes, *, failed: bool, now: float) -> None:
        """The engine has answered, or failed. After a failure nothing is known of its cache."""
        self._waiting[engine] -= prompt.num_tokens
        if failed:
            self._seen[engine].clear()
            self._out_until[engine] = now + OUT_SECONDS
