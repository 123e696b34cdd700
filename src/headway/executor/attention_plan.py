"""Which tokens of one step see which places of the KV cache: the part of attention that depends on block tables.

One step is one packed row of T tokens, the pack: first one token of each decode, then all tokens of each prefill chunk.

    tokens   [ d0 d1 d2 d3 | c0 c0 c0 c0 c0 | c1 c1 c1 ]
               decodes: one call of the       chunks: one after another, in tiles of queries;
               kernel; without a kernel,      keys are gathered from the cache, or taken from
               one gathered call per group    the pack if all of them are new
               of similar length

A place of the KV cache holds the key and value of one token; its number is block * block_size + offset. One plan per
step covers every sliding window of the model, and all layers share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headway.executor.kv_tensors import LayerShape
from headway.executor.transfer import HostArrays, SentArray
from headway.scheduler.batch import Batch, IntArray

Window = int | None


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The attention that one layer uses, as seen in a forward.

    softcap: scores are squeezed into (-softcap, softcap). has_sinks: each head has a score that takes weight and has no
    value.
    """

    layer: int
    shape: LayerShape
    query_heads: int
    window: Window
    scaling: float
    softcap: float | None
    has_sinks: bool


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """The settings of all steps of an executor.

    windows: the sliding windows of the model's layers, in tokens; None is no window.
    gathers_decodes: False if a kernel reads the keys of decodes in place; then there are no groups.
    padding: the most that a group of decodes may gather beyond the need of its shortest row, as a share. Large groups
        cost padding, many small groups cost calls.
    group_keys: the most keys that a group may gather, unless a single row needs more.
    """

    block_size: int
    windows: frozenset[Window]
    device: torch.device
    gathers_decodes: bool
    padding: float
    group_keys: int


@dataclass(slots=True)
class DecodeGroup:
    """Decodes of similar length. n rows, `width` blocks gathered for each row, K = width * block_size keys.

    rows: int64 [n], tokens of the pack. blocks: int64 [n * width]. visible: int64 [2, n, 1], first and last + 1 of the
    gathered keys that the row may see.
    """

    size: int
    rows: SentArray
    blocks: SentArray
    visible: SentArray
    mask: Tensor | None = None  # [n, 1, 1, K], 0 or -inf


@dataclass(frozen=True, slots=True)
class PagedRows:
    """The decodes of a step, for a kernel that reads the cache in place.

    slots: int32 [n]. ends: int32 [n], the number of tokens that each row sees, its own included. tables: int32
    [num_slots, blocks per request], the block tables of all slots.
    """

    slots: IntArray
    ends: IntArray
    tables: IntArray

    def firsts(self, window: Window) -> IntArray:
        """The first position that each row sees, int32 [n]."""
        return np.zeros_like(self.ends) if window is None else np.maximum(self.ends - np.int32(window), np.int32(0))


@dataclass(slots=True)
class ChunkKeys:
    """The keys that one prefill chunk sees. The chunk is tokens [start, start + length) of the pack, at `position` in
    its sequence.

    blocks: int64 [number of blocks], the blocks that hold the keys; None if the chunk begins its sequence, as the pack
    then holds all of its keys. base: position of the first of these keys.
    """

    start: int
    length: int
    position: int
    blocks: SentArray | None
    base: int


class AttentionPlan:
    """Which tokens of one step see which places of the KV cache. Usable after `arrays.send`.

    places: int64 [T], the place of each token's key and value.
    unwritten: int64 [C], the places that stay unwritten in the blocks that this step begins.
    decodes: all decodes. groups, chunks: for each window, the groups of decodes to gather, and the keys of each chunk.
    """

    def __init__(self, batch: Batch, tables: IntArray, settings: PlanSettings, arrays: HostArrays) -> None:
        self._arrays = arrays
        self._settings = settings
        self._masks: dict[tuple[int, int, int, Window], Tensor] = {}
        ends = batch.positions + batch.num_new_tokens
        self.places = arrays.add(token_places(batch, tables, settings.block_size))
        self.unwritten = arrays.add(_unwritten_places(batch, ends, tables, settings.block_size))
        decoding = batch.slots[: batch.num_decodes]
        self.decodes = PagedRows(decoding, ends[: batch.num_decodes], tables)
        self.groups = {
            window: list(self._group_decodes(decoding, self.decodes.ends, tables, window))
            for window in settings.windows
            if settings.gathers_decodes
        }
        self.chunks = {window: list(self._plan_chunks(batch, ends, tables, window)) for window in settings.windows}

    def _group_decodes(
        self, slots: IntArray, ends: IntArray, tables: IntArray, window: Window
    ) -> Iterator[DecodeGroup]:
        size = self._settings.block_size
        first_key = np.zeros_like(ends) if window is None else np.maximum(ends - window, 0)
        first_block = first_key // size
        num_blocks = -(-ends // size)
        widths = num_blocks - first_block
        order = np.argsort(-widths, kind="stable")
        descending = -widths[order]
        max_blocks = self._settings.group_keys // size
        start = 0
        while start < len(order):
            width = -int(descending[start])
            shortest = width - 1 - int(width * self._settings.padding)
            stop = int(np.searchsorted(descending, -shortest, side="right"))
            stop = min(stop, start + max(1, max_blocks // width))
            rows = order[start:stop]
            columns = first_block[rows, None] + np.arange(width, dtype=np.int32)
            known = columns < num_blocks[rows, None]
            # Behind its end a block table holds garbage. Block 0 stands in: it is all zeros, and masked.
            blocks = np.where(known, tables[slots[rows, None], np.where(known, columns, 0)], 0)
            base = first_block[rows] * size
            visible = np.stack([first_key[rows] - base, ends[rows] - base])[:, :, None]
            yield DecodeGroup(
                len(rows), self._arrays.add(rows), self._arrays.add(blocks.ravel()), self._arrays.add(visible)
            )
            start = stop

    def _plan_chunks(self, batch: Batch, ends: IntArray, tables: IntArray, window: Window) -> Iterator[ChunkKeys]:
        start = batch.num_decodes
        for row in range(batch.num_decodes, len(batch)):
            position, length, end = int(batch.positions[row]), int(batch.num_new_tokens[row]), int(ends[row])
            if position == 0:
                yield ChunkKeys(start, length, position, None, 0)
            else:
                first = 0 if window is None else max(0, position - window + 1) // self._settings.block_size
                blocks = tables[batch.slots[row], first : -(-end // self._settings.block_size)]
                yield ChunkKeys(start, length, position, self._arrays.add(blocks), first * self._settings.block_size)
            start += length

    def group_mask(self, group: DecodeGroup, num_keys: int, dtype: torch.dtype) -> Tensor:
        """Mask of the keys that the rows of a group see: [n, 1, 1, num_keys], 0 or -inf."""
        if group.mask is None:
            first, end = group.visible.tensor
            keys = torch.arange(num_keys, device=self._settings.device)
            group.mask = _additive((keys >= first) & (keys < end), dtype)[:, None, None]
        return group.mask

    def tile_mask(self, queries: int, keys: int, repeats: int, window: Window, dtype: torch.dtype) -> Tensor | None:
        """Mask of the keys that a tile of consecutive tokens sees; the last key belongs to the last token. Repeated for
        each query head of a key head: [repeats * queries, keys], 0 or -inf. None if every token sees every key."""
        if queries == 1:
            return None
        key = (queries, keys, repeats, window)
        if key not in self._masks:
            query_index = torch.arange(keys - queries, keys, device=self._settings.device)[:, None]
            key_index = torch.arange(keys, device=self._settings.device)
            seen = key_index <= query_index
            if window is not None:
                seen &= key_index > query_index - window
            self._masks[key] = _additive(seen, dtype).repeat(repeats, 1)
        return self._masks[key]


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def token_places(batch: Batch, tables: IntArray, block_size: int) -> NDArray[np.int64]:
    """The place of every token of the pack in the KV cache. int64 [T]."""
    rows = np.repeat(np.arange(len(batch)), batch.num_new_tokens)
    positions = token_positions(batch)
    blocks = tables[batch.slots[rows], positions // block_size].astype(np.int64)
    places: NDArray[np.int64] = blocks * block_size + positions % block_size
    return places


def token_positions(batch: Batch) -> NDArray[np.int64]:
    """The position of every token of the pack in its sequence. int64 [T]."""
    counts = batch.num_new_tokens.astype(np.int64)
    starts = np.cumsum(counts) - counts  # of each row in the pack
    positions: NDArray[np.int64] = np.arange(batch.num_tokens) + np.repeat(batch.positions - starts, counts)
    return positions


def _unwritten_places(batch: Batch, ends: IntArray, tables: IntArray, block_size: int) -> NDArray[np.int64]:
    """Places after the last token in blocks that this step begins and does not fill. int64 [C]."""
    in_block = ends % block_size
    begun = np.flatnonzero((in_block > 0) & (ends - in_block >= batch.positions))
    blocks = tables[batch.slots[begun], ends[begun] // block_size].astype(np.int64)
    offsets = np.arange(block_size)
    places: NDArray[np.int64] = blocks[:, None] * block_size + offsets
    return places[offsets >= in_block[begun, None]]
