"""Attention of decodes on a CPU, compiled by numba: it reads keys and values in place, in the blocks of the KV cache.

torch must gather keys and values first, which moves every byte of the KV cache twice more, in every layer of every
step. The rows of a step are divided among threads so that each thread reads about as many keys. The compiled code runs
without the GIL.

The threads belong to OpenMP, and torch computes with the same threads. Threads of our own would compete with them for
the cores, as OpenMP threads spin for a while after each product of torch.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.error_text import first_line
from headway.scheduler.batch import IntArray

try:
    import numba
    from llvmlite import ir  # type: ignore[import-untyped]
    from numba import prange
    from numba.extending import intrinsic
except ImportError:  # torch computes decodes then
    numba = None
    prange = range

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

# What the compiler may assume, in order to use vectors. Infinities and NaNs do occur.
_FAST = {"reassoc", "contract", "arcp", "nsz"}

_LINE = 16  # float32 numbers in a cache line


class DecodeKernel:
    """The compiled function and its scratch memory. Used by one thread at a time.

    num_threads: the number of threads that compute, the caller's thread included.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._scores = np.empty(0, np.float32)

    @classmethod
    def compiled(cls, num_threads: int) -> DecodeKernel | None:
        """A kernel that is ready to run; None if numba is not installed. Compiling takes some seconds, the first time.

        It has one thread if numba finds no OpenMP, and no more threads than NUMBA_NUM_THREADS.
        """
        if numba is None:
            return None
        kernel = cls(min(num_threads, numba.config.NUMBA_NUM_THREADS))
        if kernel.num_threads > 1:
            if numba.config.THREADING_LAYER == "default":
                numba.config.THREADING_LAYER = "omp"
            try:
                kernel._try()
            except ValueError as error:
                logger.warning("attention of decodes by one thread: numba finds no OpenMP (%s)", error)
                kernel = cls(1)
        kernel._try()
        return kernel

    def _try(self) -> None:
        """Run once, which compiles. Where the compiled code cannot be kept for the next process, run without that."""
        try:
            self._run_once()
        except OSError as error:  # for one, the disk is full
            logger.warning(
                "the compiled attention of decodes cannot be cached, it is compiled at each start: %s", error
            )
            _compile(cache=False)
            self._run_once()

    def _run_once(self) -> None:
        one, cache = np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)
        table, row = np.zeros((1, 1), np.int32), np.zeros(1, np.int32)
        self.attend(one, cache, cache, table, row, row, row + 1, np.empty_like(one), None, None)

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
        """Compute the attention of each row's query over the keys of positions [first, end) of its slot.

        queries: float32 [n, Hq, D], already scaled. keys: float32 [num_blocks, block_size, Hk, D]; values with Dv.
        tables: int32 [num_slots, blocks per request]. slots, firsts, ends: int32 [n]; first < end.
        out: float32 [n, Hq, Dv], where the result goes. softcap: scores are squeezed into (-softcap, softcap).
        sinks: float32 [Hq], for each head a score that takes weight and has no value.
        """
        seen = ends - firsts
        longest, heads = int(seen.max()), queries.shape[1]
        size = self.num_threads * heads * longest
        if self._scores.size < size:
            self._scores = np.empty(2 * size, np.float32)
        scores = self._scores[:size].reshape(self.num_threads, heads, longest)
        cap = np.float32(softcap or 0.0)
        sinks = np.empty(0, np.float32) if sinks is None else sinks
        rows = (queries, keys, values, tables, slots, firsts, ends, out, cap, sinks)
        if self.num_threads == 1:
            _attend(*rows, scores[0])
        else:
            numba.set_num_threads(self.num_threads)  # a setting of the calling thread
            _attend_shares(_shares(seen, self.num_threads), *rows, scores)


def _shares(seen: IntArray, num_shares: int) -> NDArray[np.int64]:
    """Where to cut the rows so that each share sees about the same number of keys: int64 [num_shares + 1] bounds."""
    until = np.cumsum(seen)
    cuts = np.searchsorted(until, until[-1] * np.arange(1, num_shares) / num_shares, side="left") + 1
    return np.array([0, *np.minimum(cuts, len(seen)), len(seen)])


def _attend(  # noqa: C901  one loop nest: numba inlines nothing of it
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
        blocks = tables[slots[row]]
        begin, stop = first // block_size, (end + block_size - 1) // block_size
        for column in range(begin, stop):
            block, ahead = blocks[column], blocks[min(column + 1, stop - 1)]
            base = column * block_size - first
            for offset in range(max(-base, 0), min(num_keys - base, block_size)):
                for key_head in range(key_heads):
                    for d in range(0, key_dim, _LINE):
                        _prefetch(keys[ahead, offset, key_head, d:])
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
        for column in range(begin, stop):
            block, ahead = blocks[column], blocks[min(column + 1, stop - 1)]
            base = column * block_size - first
            for offset in range(max(-base, 0), min(num_keys - base, block_size)):
                for key_head in range(key_heads):
                    for d in range(0, value_dim, _LINE):
                        _prefetch(values[ahead, offset, key_head, d:])
                    for head in range(key_head * group, (key_head + 1) * group):
                        weight = scores[head, base + offset]
                        for d in range(value_dim):
                            out[row, head, d] += weight * values[block, offset, key_head, d]


def _attend_shares(
    bounds: NDArray[np.int64],
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
    """`_attend` for all shares at once. bounds: int64 [shares + 1]. scores: float32 [shares, Hq, longest], scratch."""
    for part in prange(len(bounds) - 1):
        begin, end = bounds[part], bounds[part + 1]
        _attend(
            queries[begin:end],
            keys,
            values,
            tables,
            slots[begin:end],
            firsts[begin:end],
            ends[begin:end],
            out[begin:end],
            softcap,
            sinks,
            scores[part],
        )


def _jit(function: Any, cache: bool, **options: Any) -> Any:
    """Compile at the first call. cache: keep the result for the next process, beside this file, else in the user's
    cache."""
    if cache:
        try:
            return numba.njit(nogil=True, fastmath=_FAST, cache=True, **options)(function)
        except (RuntimeError, OSError) as error:  # no folder can be written
            logger.warning("the compiled attention of decodes cannot be cached: %s", first_line(error))
    return numba.njit(nogil=True, fastmath=_FAST, **options)(function)


def _prefetch_first(_context: Any, array: Any) -> Any:
    """Fetch the cache line of an array's first number into the second-level cache before it is read.

    The processor fetches ahead by itself only within a block, as the next block lies elsewhere. It cannot fetch a whole
    block at once: it drops requests beyond its limit. So each key of a block fetches the key at the same offset of the
    next block.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        data = context.make_array(array)(context, builder, arguments[0]).data
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        for_reading, second_level, is_data = number(0), number(2), number(1)
        builder.call(prefetch, [builder.bitcast(data, pointer), for_reading, second_level, is_data])
        return context.get_dummy_value()

    return numba.void(array), generate


def _compile(cache: bool) -> None:
    """Put compiled functions in the place of the two of this module. `_attend_shares` calls `_attend` by its name."""
    global _attend, _attend_shares
    _attend = _jit(getattr(_attend, "py_func", _attend), cache)
    _attend_shares = _jit(getattr(_attend_shares, "py_func", _attend_shares), cache, parallel=True)


if numba is not None:
    _prefetch = intrinsic(_prefetch_first)
    _compile(cache=True)
