"""Attention over the paged KV cache. It replaces the attention of a transformers model.

It is registered with transformers under `NAME`. A name with "flash", "/" or "paged|" in it would get special treatment;
a name without an entry in the mask registry makes models build no mask. The registered function is stateless. Each
attention module carries the `PagedAttention` of its executor, so several executors can share a process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from headway.executor.attention_plan import AttentionCall, AttentionPlan, ChunkKeys, DecodeGroup, PagedRows, Window
from headway.executor.decode_kernel import DecodeKernel
from headway.executor.flashinfer_attention import FlashInferAttention, PagePlan
from headway.executor.kv_tensors import KVTensors, LayerShape

NAME = "headway"
_MODULE_ATTRIBUTE = "headway_attention"

_QUERY_TILE = 256  # bounds the scores held at once, and lets early queries skip the keys after them


class UnsupportedAttentionError(ValueError):
    """The model needs a kind of attention that is not implemented."""


class PagedAttention:
    """The attention of one executor: its KV cache, the plan of the running step, its scratch memory.

    max_model_len: the longest sequence; a longer window hides nothing.
    kernel: if set, computes all decodes, and plans must be made for it.
    flashinfer: computes steps whose plan is a PagePlan.
    Used by one thread at a time.
    """

    def __init__(self, max_model_len: int) -> None:
        self._max_model_len = max_model_len
        self.kernel: DecodeKernel | None = None
        self.flashinfer: FlashInferAttention | None = None
        self._scratch: dict[str, Tensor] = {}
        self.kv: KVTensors | None = None
        self.plan: AttentionPlan | PagePlan | None = None
        self._calls: list[AttentionCall] | None = None

    def bind(self, model: nn.Module) -> None:
        """Make every attention layer of `model` that uses `NAME` call this object."""
        for module in model.modules():
            setattr(module, _MODULE_ATTRIBUTE, self)

    def close(self) -> None:
        """Release the KV cache and all scratch memory."""
        self.kv = self.plan = self.kernel = self.flashinfer = None
        self._scratch.clear()

    def window(self, sliding_window: int | None) -> Window:
        """The sliding window, or None if it can hide no key of the longest sequence."""
        return sliding_window if sliding_window and sliding_window < self._max_model_len else None

    def begin_step(self, plan: AttentionPlan | PagePlan) -> None:
        """Prepare for the forward of one step. Must be called before each."""
        self.plan = plan
        if isinstance(plan, PagePlan):
            assert self.flashinfer is not None, "its plans are for it"
            self.flashinfer.begin_step(plan)
        elif self.kv is not None and plan.unwritten.array.size:
            self.kv.clear(plan.unwritten.tensor)

    @contextmanager
    def noting_calls(self) -> Iterator[list[AttentionCall]]:
        """Inside this context every call is added to the returned list, and computed without its window."""
        calls: list[AttentionCall] = []
        self._calls = calls
        try:
            yield calls
        finally:
            self._calls = None

    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None,
                window: Window, softcap: float | None, sinks: Tensor | None) -> Tensor:  # fmt: skip
        """query [1, Hq, T, D], key [1, Hk, T, D], value [1, Hk, T, Dv] -> [1, T, Hq, Dv], valid until the next call."""
        plan = self.plan
        assert plan is not None, "a forward outside a step"
        query, key, value = query[0], key[0].transpose(0, 1), value[0].transpose(0, 1)
        shape = LayerShape(key.shape[1], key.shape[2], value.shape[1], value.shape[2])
        score = _Score(scaling if scaling is not None else query.shape[2] ** -0.5, softcap, sinks)
        if self._calls is not None:
            self._calls.append(
                AttentionCall(layer, shape, len(query), window, score.scaling, softcap, sinks is not None)
            )
            window = None  # the windows to plan for are not known yet
        if self.kv is not None:
            self.kv.write(layer, plan.places.tensor, key, value)
        if isinstance(plan, PagePlan):
            assert self.flashinfer is not None and self.kv is not None
            return self.flashinfer.attend(layer, query, self.kv, sinks)[None]
        heads, num_tokens, _ = query.shape
        out = self._take("out", (num_tokens, heads, value.shape[2]), query)
        if self.kernel is not None:
            self._decode_in_place(self.kernel, layer, plan.decodes, query, window, out, score)
        else:
            for group in plan.groups[window]:
                self._decode(layer, plan, group, query, out, score)
        for chunk in plan.chunks[window]:
            self._prefill(layer, plan, chunk, query, key, value, window, out, score)
        return out[None]

    def _decode_in_place(self, kernel: DecodeKernel, layer: int, rows: PagedRows, query: Tensor, window: Window,
                         out: Tensor, score: _Score) -> None:  # fmt: skip
        size = len(rows.slots)
        if not size:
            return
        assert self.kv is not None, "only a KV cache holds earlier tokens"
        keys, values = self.kv.layers[layer]
        queries = self._take("queries", (size, query.shape[0], query.shape[2]), query)
        torch.mul(query[:, :size].transpose(0, 1), score.scaling, out=queries)
        kernel.attend(
            queries.numpy(), keys.numpy(), values.numpy(), rows.tables, rows.slots, rows.firsts(window), rows.ends,
            out[:size].numpy(), score.softcap, None if score.sinks is None else score.sinks.float().numpy(),
        )  # fmt: skip

    def _decode(self, layer: int, plan: AttentionPlan, group: DecodeGroup, query: Tensor, out: Tensor,
                score: _Score) -> None:  # fmt: skip
        keys, values = self._gather(layer, group.blocks.tensor, group.size)  # [n, Hk, K, D]
        rows = group.rows.tensor
        # The query heads that share a key head become that head's queries: nothing is repeated.
        queries = query.transpose(0, 1)[rows].view(group.size, keys.shape[1], -1, query.shape[2])  # [n, Hk, Hq / Hk, D]
        mask = plan.group_mask(group, keys.shape[2], query.dtype)
        out[rows] = score.attend(queries, keys, values, mask).flatten(1, 2)

    def _prefill(self, layer: int, plan: AttentionPlan, chunk: ChunkKeys, query: Tensor, key: Tensor, value: Tensor,
                 window: Window, out: Tensor, score: _Score) -> None:  # fmt: skip
        tokens = slice(chunk.start, chunk.start + chunk.length)
        query, out = query[:, tokens], out[tokens]
        if chunk.blocks is None:
            keys, values = key[None, tokens].transpose(1, 2), value[None, tokens].transpose(1, 2)
            if score.is_plain and (window is None or chunk.length <= window):
                out.copy_(score.attend_causal(query[None], keys, values)[0].transpose(0, 1))
                return
        else:
            keys, values = self._gather(layer, chunk.blocks.tensor, 1)  # [1, Hk, K, D]
        key_heads = keys.shape[1]
        repeats = query.shape[0] // key_heads
        for first in range(0, chunk.length, _QUERY_TILE):
            last = min(first + _QUERY_TILE, chunk.length)
            end = chunk.position + last
            begin = max(chunk.base, 0 if window is None else chunk.position + first - window + 1)
            seen = slice(begin - chunk.base, end - chunk.base)
            queries = query[:, first:last].reshape(1, key_heads, repeats * (last - first), -1)
            mask = plan.tile_mask(last - first, end - begin, repeats, window, query.dtype)
            tile = score.attend(queries, keys[:, :, seen], values[:, :, seen], mask)
            out[first:last] = tile.reshape(query.shape[0], last - first, -1).transpose(0, 1)

    def _gather(self, layer: int, blocks: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        """The keys and values in `blocks`, each [num_rows, heads, K, dim]; valid until the next call."""
        assert self.kv is not None, "only a KV cache holds earlier tokens"

        def gather(name: str, cache: Tensor) -> Tensor:
            gathered = self._take(name, (len(blocks), *cache.shape[1:]), cache)
            torch.index_select(cache, 0, blocks, out=gathered)
            return gathered.view(num_rows, -1, *cache.shape[2:]).transpose(1, 2)

        keys, values = self.kv.layers[layer]
        return gather("keys", keys), gather("values", values)

    def _take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Scratch memory, kept from call to call: allocating much memory costs more than filling it."""
        size = int(np.prod(shape))
        scratch = self._scratch.get(name)
        if scratch is None or scratch.numel() < size:
            scratch = self._scratch[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return scratch[:size].view(shape)


@dataclass(frozen=True, slots=True)
class _Score:
    """How scores become weights. sinks: [Hq], per head a score that takes weight and has no value."""

    scaling: float
    softcap: float | None
    sinks: Tensor | None

    @property
    def is_plain(self) -> bool:
        return self.softcap is None and self.sinks is None

    def attend_causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All keys are new. query [1, Hq, Q, D], key and value [1, Hk, Q, D] -> [1, Hq, Q, Dv]."""
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, scale=self.scaling, enable_gqa=grouped
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """query [n, Hk, G, D], G queries for each key head; key and value [n, Hk, K, D]; mask broadcasts to
        [n, Hk, G, K] -> [n, Hk, G, Dv]."""
        if self.is_plain:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scaling)
        scores = torch.matmul(query, key.transpose(2, 3)).mul_(self.scaling)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        if mask is not None:
            scores += mask
        scores = scores.float()
        if self.sinks is not None:
            key_heads, rows = scores.shape[1], scores.shape[2]
            heads_per_key = len(self.sinks) // key_heads  # G is these heads, each with equally many queries
            sinks = self.sinks.float().view(1, key_heads, heads_per_key, 1).repeat_interleave(rows // heads_per_key, 2)
            scores = torch.cat([scores, sinks.expand(len(scores), -1, -1, -1)], dim=3)
        weights = scores.softmax(dim=3)[..., : key.shape[2]]
        return torch.matmul(weights.to(value.dtype), value)


def paged_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                    scaling: float | None = None, dropout: float = 0.0,  # noqa: ARG001  there is none at inference
                    sliding_window: int | None = None,
                    softcap: float | None = None, s_aux: Tensor | None = None,
                    **kwargs: Any) -> tuple[Tensor, None]:  # fmt: skip
    """The function transformers calls in every layer; see `PagedAttention.forward`.

    Raises UnsupportedAttentionError if the model needs a feature that is missing here.
    """
    attention: PagedAttention = getattr(module, _MODULE_ATTRIBUTE)
    for name in ("position_bias", "cache", "block_table"):
        if kwargs.get(name) is not None:
            raise UnsupportedAttentionError(f"its attention takes a {name}, which is not supported")
    if kwargs.get("is_causal") is False:  # what the module itself says may hold for images only: the proof compares
        raise UnsupportedAttentionError("its attention is not causal")
    if attention_mask is not None:
        raise UnsupportedAttentionError("it builds an attention mask of its own, which is not supported")
    window = attention.window(sliding_window)
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise UnsupportedAttentionError("its layers of attention have no number (layer_idx)")
    return attention.forward(layer, query, key, value, scaling, window, softcap, s_aux), None


AttentionInterface.register(NAME, paged_attention)
