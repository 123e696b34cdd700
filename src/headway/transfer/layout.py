"""What two engines must have in common so that KV blocks can travel, and where the bytes of a block lie."""

from __future__ import annotations

import math

import msgspec

PROTOCOL = 2  # of messages and readers; two engines of different versions do not talk
_ALIGNMENT = 4096  # bytes; each part begins at a page


class LayerSizes(msgspec.Struct, frozen=True, array_like=True):
    """Of one token in one layer: heads and head sizes of its key and its value."""

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int


class KVLayout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The KV memory of an engine: parts one after the other, a part for the keys and one for the values of each layer.

        part 2 i:      keys of layer i    [num_blocks, block_size, key_heads,   key_dim]
        part 2 i + 1:  values of layer i  [num_blocks, block_size, value_heads, value_dim]

    So the bytes of a block are one range in each part. dtype: as numpy or torch names it. itemsize: bytes of a number.
    model: digest of the model, see `model_digest`. num_blocks: the only field in which two engines may differ.
    """

    block_size: int
    layers: tuple[LayerSizes, ...]
    dtype: str
    itemsize: int
    model: str
    num_blocks: int
    protocol: int = PROTOCOL

    def check(self, theirs: KVLayout) -> None:
        """Raises ValueError, naming the field and both values, if blocks cannot travel between these two engines."""
        for field in ("protocol", "model", "dtype", "itemsize", "block_size", "layers"):
            mine, other = getattr(self, field), getattr(theirs, field)
            if mine == other:
                continue
            if field == "layers" and len(mine) != len(other):
                raise ValueError(f"the number of layers differs: {len(mine)} here, {len(other)} there")
            if field == "layers":
                index = next(i for i, pair in enumerate(zip(mine, other, strict=True)) if pair[0] != pair[1])
                raise ValueError(f"the KV of layer {index} differs: {mine[index]} here, {other[index]} there")
            raise ValueError(f"{field} differs: {mine!r} here, {other!r} there")
        if theirs.num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {theirs.num_blocks} there")

    @property
    def part_bytes(self) -> tuple[int, ...]:
        """Bytes that a block has in each part."""
        token = self.block_size * self.itemsize
        sizes = ((token * s.key_heads * s.key_dim, token * s.value_heads * s.value_dim) for s in self.layers)
        return tuple(size for pair in sizes for size in pair)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block over all parts."""
        return sum(self.part_bytes)

    @property
    def part_offsets(self) -> tuple[int, ...]:
        """Where each part begins, in bytes."""
        offsets, end = [], 0
        for size in self.part_bytes:
            offsets.append(end)
            end += -(-size * self.num_blocks // _ALIGNMENT) * _ALIGNMENT
        return tuple(offsets)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole memory; a multiple of the page size."""
        sizes = (size * self.num_blocks for size in self.part_bytes)
        return sum(math.ceil(size / _ALIGNMENT) * _ALIGNMENT for size in sizes)

    @property
    def planes(self) -> tuple[tuple[int, int], ...]:
        """Parts of equal size that follow each other, as (first part, number of parts): mostly all of them."""
        sizes = self.part_bytes
        starts = [part for part in range(len(sizes)) if part == 0 or sizes[part] != sizes[part - 1]]
        return tuple((start, end - start) for start, end in zip(starts, [*starts[1:], len(sizes)], strict=True))

    def columns_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)
