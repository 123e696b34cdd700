"""A cache of transformers that holds nothing and only says how long it is.

Some models read positions from the length of the cache, although they are given positions: Llama 4 does so for the
temperature of its attention. Headway keeps keys and values elsewhere, so such a model gets this cache for its length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class EmptyCache(DynamicCache):
    """length: tokens that the cache claims to hold; or, for a pack of T tokens, int64 [T]: what must be added to the
    index of each token in the pack to get its position.

    layers_read_it: whether a layer has asked for the length. Models ask for it too, to make up positions and masks that
    were not given; what is right for a pack is given.
    """

    def __init__(self, length: int | Tensor) -> None:
        super().__init__()
        self._length = length
        self.layers_read_it = False

    @classmethod
    def of_pack(cls, positions: Tensor) -> EmptyCache:
        """The cache of a packed forward. positions: int64 [T]."""
        return cls(positions - torch.arange(len(positions), device=positions.device))

    def get_seq_length(self, layer_idx: int | None = None) -> Any:
        self.layers_read_it |= layer_idx is not None
        return self._length

    def get_query_offset(self, layer_idx: int = 0) -> Any:  # noqa: ARG002
        return self._length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> Any:  # noqa: ARG002
        """Only the new tokens are there to attend to, and the first of them has the position `length`."""
        return query_length, self._length

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        return key_states, value_states
