"""Attention of decodes on a CPU, compiled by numba: it reads keys and values where they are, in the cache's blocks.

Gathering them first, as the plain way must, moves every byte of the KV cache twice more, in every layer of every step.
The rows of a step are shared out among threads by the keys that they see; the compiled code runs without the GIL.
"""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.scheduler.batch import IntArray

try:
    import numba
except ImportError:  # the plain way is there
    numba = None

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

# What a compiler may assume to use vectors; not that infinities and NaNs never come.
_FAST = {"reassoc", "contract", "arcp", "nsz"}


class DecodeKernel:
    """The compiled function and the threads that run it. Used by one thread at a time.

    num_threads: how many compute, the caller's own among them.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._helpers = ThreadPoolExecutor(num_threads - 1, "attention") if num_threads > 1 else None
        self._scores: list[Floats] = [np.empty(0, np.float32)] * num_threads

    @classmethod
    def compiled(cls, num_threads: int) -> DecodeKernel | None:
        """One that is ready to run, None where numba is not installed. Compiling takes some seconds, the first time."""
        if numba is None:
            return None
        kernel = cls(num_threads)
        one, cache, table = (
            np.ones((1, 1, 1), np.float32),
            np.ones((1, 1, 1, 1), np.float32),
            np.zeros((1, 1), np.int32),
        )
        rows = np.zeros(1, np.int32)
        kernel.attend(one, cache, cache, table, rows, rows, rows + 1, np.empty_like(one), None, None)
        return kernel

    def close(self) -> None:
        """End the threads."""
        if self._helpers is not None:
            self._helpers.shutdown(wait=False)

    def attend(
        self,
        queries: Floats,
        keys: Floats,
        values: Floats,
        tables: IntArray,
        slots: IntArray,
        firsts: IntArray,
        ends: IntArray,
        out: Floats,
        softcap: float | None,
        sinks: Floats | None,
    ) -> None:
        """Each row's query looks at the keys of positions [first, end) of its slot.

        queries: float32 [n, Hq, D], already scaled. keys: float32 [num_blocks, block_size, Hk, D]; values with Dv.
        tables: int32 [num_slots, blocks per request]. slots, firsts, ends: int32 [n]; first < end.
        out: float32 [n, Hq, Dv], is written. softcap: scores are squeezed into (-softcap, softcap).
        sinks: float32 [Hq], a score for each head that takes weight and gives nothing.
        """
        seen = ends - firsts
        longest, heads = int(seen.max()), queries.shape[1]
        bounds = _shares(seen, self.num_threads)
        cap = np.float32(softcap or 0.0)
        sinks = np.empty(0, np.float32) if sinks is None else sinks

        def run(part: int) -> None:
            rows = slice(bounds[part], bounds[part + 1])
            if self._scores[part].size < heads * longest:
                self._scores[part] = np.empty(2 * heads * longest, np.float32)
            scores = self._scores[part][: heads * longest].reshape(heads, longest)
            _attend(
                queries[rows],
                keys,
                values,
                tables,
                slots[rows],
                firsts[rows],
                ends[rows],
                out[rows],
                cap,
                sinks,
                scores,
            )

        parts = [part for part in range(self.num_threads) if bounds[part] < bounds[part + 1]]
        others = [self._helpers.submit(run, part) for part in parts[1:]] if self._helpers is not None else []
        run(parts[0])
        for other in others:
            other.result()


def _shares(seen: IntArray, num_shares: int) -> list[int]:
    """Where to cut the rows so that each share sees about as many keys: num_shares + 1 bounds."""
    if num_shares == 1:
        return [0, len(seen)]
    until = np.cumsum(seen)
    cuts = np.searchsorted(until, until[-1] * np.arange(1, num_shares) / num_shares, side="left") + 1
    return [0, *np.minimum(cuts, len(seen)).tolist(), len(seen)]


def _attend(
    queries: Floats,
    keys: Floats,
    values: Floats,
    tables: IntArray,
    slots: IntArray,
    firsts: IntArray,
    ends: IntArray,
    out: Floats,
    softcap: Any,
    sinks: Floats,
    scores: Floats,
) -> None:  # pragma: no cover - what runs is compiled from it
    """See `DecodeKernel.attend`. scores: float32 [Hq, at least the longest row], scratch."""
    block_size, key_heads = keys.shape[1], keys.shape[2]
    heads, key_dim, value_dim = queries.shape[1], queries.shape[2], out.shape[2]
    group = heads // key_heads
    for row in range(len(slots)):
        first, end = firsts[row], ends[row]
        num_keys = end - first
        for column in range(first // block_size, (end + block_size - 1) // block_size):
            block = tables[slots[row], column]
            base = column * block_size - first
            for offset in range(max(-base, 0), min(num_keys - base, block_size)):
                for key_head in range(key_heads):
                    for head in range(key_head * group, (key_head + 1) * group):
                        score = np.float32(0)
                        for d in range(key_dim):
                            score += queries[row, head, d] * keys[block, offset, key_head, d]
                        scores[head, base + offset] = score
        for head in range(heads):
            if softcap > 0:
                for i in range(num_keys):
                    scores[head, i] = softcap * math.tanh(scores[head, i] / softcap)
            top = sinks[head] if len(sinks) else np.float32(-np.inf)
            for i in range(num_keys):
                top = max(top, scores[head, i])
            total = np.float32(math.exp(sinks[head] - top)) if len(sinks) else np.float32(0)
            for i in range(num_keys):
                weight = np.float32(math.exp(scores[head, i] - top))
                scores[head, i] = weight
                total += weight
            for i in range(num_keys):
                scores[head, i] /= total
            for d in range(value_dim):
                out[row, head, d] = 0
        for column in range(first // block_size, (end + block_size - 1) // block_size):
            block = tables[slots[row], column]
            base = column * block_size - first
            for offset in range(max(-base, 0), min(num_keys - base, block_size)):
                for key_head in range(key_heads):
                    for head in range(key_head * group, (key_head + 1) * group):
                        weight = scores[head, base + offset]
                        for d in range(value_dim):
                            out[row, head, d] += weight * values[block, offset, key_head, d]


if numba is not None:
    _attend = numba.njit(nogil=True, fastmath=_FAST, cache=True)(_attend)
