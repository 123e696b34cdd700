"""The memory of the KV cache on the device: one key and one value tensor per layer.

    layer i:  keys   [num_blocks, block_size, key_heads,   key_dim]      block 0 is nobody's: padding points there
              values [num_blocks, block_size, value_heads, value_dim]

Head counts and head dims come from what each layer was seen to pass to its attention, not from the config: they may
differ from layer to layer, and between keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Numbers kept per token in one layer: key_heads * key_dim and value_heads * value_dim of them."""

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int

    @property
    def size_per_token(self) -> int:
        return self.key_heads * self.key_dim + self.value_heads * self.value_dim


def bytes_per_block(layers: Mapping[int, LayerShape], block_size: int, dtype: torch.dtype) -> int:
    """Bytes that one block takes over all layers."""
    return block_size * dtype.itemsize * sum(shape.size_per_token for shape in layers.values())


class KVTensors:
    """The KV cache of every layer.

    The memory starts as zeros, and `clear` wipes what is left of a block when a sequence starts it: where scores are
    masked, they still multiply the values that they mask, and zero times a stranger's NaN is NaN. There block 0 stays
    zero; only rows that pad the steps of graphs write to it, which FlashInfer computes, and it reads nothing masked.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size

        def zeros(heads: int, dim: int) -> Tensor:
            return torch.zeros(num_blocks, block_size, heads, dim, dtype=dtype, device=device)

        self.layers = {
            index: (zeros(s.key_heads, s.key_dim), zeros(s.value_heads, s.value_dim)) for index, s in layers.items()
        }

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store T tokens. slots: int64 [T], block * block_size + offset; keys, values: [T, heads, dim]."""
        key_cache, value_cache = self.layers[layer]
        key_cache.flatten(0, 1).index_copy_(0, slots, keys)
        value_cache.flatten(0, 1).index_copy_(0, slots, values)

    def clear(self, slots: Tensor) -> None:
        """Zero the given slots in every layer. slots: int64 [C]."""
        for key_cache, value_cache in self.layers.values():
            key_cache.flatten(0, 1).index_fill_(0, slots, 0)
            value_cache.flatten(0, 1).index_fill_(0, slots, 0)
