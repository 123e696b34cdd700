"""The memory of the KV cache on the device: a key tensor and a value tensor per layer.

    layer i:  keys   [num_blocks, block_size, key_heads,   key_dim]      block 0 is padding, and belongs to no request
              values [num_blocks, block_size, value_heads, value_dim]

Head counts and head dims come from the calls of each layer to its attention, not from the config: they may differ from
layer to layer, and between keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.transfer.layout import KVLayout, LayerSizes
from headway.transfer.memory import KVMemory


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The shape of one token's key and value in one layer."""

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


def kv_layout(
    layers: Mapping[int, LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype, model: str
) -> KVLayout:
    """How the KV cache lies in memory that other engines can read: its tensors one after the other, layer by layer.
    model: a digest of the model."""
    return KVLayout(
        block_size=block_size,
        layers=tuple(LayerSizes(s.key_heads, s.key_dim, s.value_heads, s.value_dim) for _, s in sorted(layers.items())),
        dtype=str(dtype).removeprefix("torch."),
        itemsize=dtype.itemsize,
        model=model,
        num_blocks=num_blocks,
    )


class KVTensors:
    """The KV cache of every layer.

    memory: where the tensors lie, see `kv_layout`; it is all zeros. None: in memory of torch.

    The memory starts as zeros, and `clear` zeroes the rest of a block when a sequence begins it. torch multiplies
    masked values by zero, and zero times the NaN of another request is NaN. For the same reason block 0 stays zero with
    torch. Only the padding rows of graphs write to block 0; FlashInfer computes graphs, and reads no masked value.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        memory: KVMemory | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size

        def zeros(heads: int, dim: int) -> Tensor:
            return torch.zeros(num_blocks, block_size, heads, dim, dtype=dtype, device=device)

        if memory is None:
            self.layers = {
                index: (zeros(s.key_heads, s.key_dim), zeros(s.value_heads, s.value_dim)) for index, s in layers.items()
            }
            return
        flat = [torch.from_numpy(part).view(dtype) for part in memory.parts]
        self.layers = {
            index: (
                flat[2 * row].view(num_blocks, block_size, shape.key_heads, shape.key_dim),
                flat[2 * row + 1].view(num_blocks, block_size, shape.value_heads, shape.value_dim),
            )
            for row, (index, shape) in enumerate(sorted(layers.items()))
        }

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store T tokens. places: int64 [T], block * block_size + offset; keys, values: [T, heads, dim]."""
        key_cache, value_cache = self.layers[layer]
        key_cache.flatten(0, 1).index_copy_(0, places, keys)
        value_cache.flatten(0, 1).index_copy_(0, places, values)

    def clear(self, places: Tensor) -> None:
        """Zero these places in every layer. places: int64 [C]."""
        for key_cache, value_cache in self.layers.values():
            key_cache.flatten(0, 1).index_fill_(0, places, 0)
            value_cache.flatten(0, 1).index_fill_(0, places, 0)
