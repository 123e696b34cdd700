"""The proof that a model says the same with our attention as with its own.

The proof is a small forward of three sequences: one after the other with the model's own attention, and packed into
one row with ours. The first sequence begins at position 0, the last ends at the longest length, the second lies between
them; so a model whose positions do not come from `position_ids` shows. Some models would run and give wrong tokens:
models that bypass the attention interface, take no positions, or keep other state than keys and values. They are
refused by name.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from headway.executor import packed_forward
from headway.executor.attention import PagedAttention, UnsupportedAttentionError
from headway.executor.attention_plan import AttentionCall, AttentionPlan
from headway.executor.empty_cache import EmptyCache
from headway.executor.model_head import ModelHead
from headway.executor.packed_forward import plan_prompts
from headway.model_limits import ModelLimits

# The most that our logits may differ from the model's own, relative to their norm. The cause is rounding, which routing
# between experts amplifies in half precision. A wrong mask or position gives a far larger difference.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.3}
_LENGTH = 8
_KINDS = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the proof finds out; see `LoadedModel`."""

    calls: tuple[AttentionCall, ...]
    vocab_size: int
    takes_logits_to_keep: bool
    reads_cache_length: bool
    head: ModelHead | None


class ModelProof:
    """Made while the model has its own attention; checked when it has ours.

    Raises UnsupportedAttentionError if the model takes no positions.
    """

    @torch.inference_mode()
    def __init__(self, module: nn.Module, limits: ModelLimits, device: torch.device) -> None:
        self._module, self._limits, self._device = module, limits, device
        self._parameters = inspect.signature(module.forward).parameters
        if "position_ids" not in self._parameters:
            raise UnsupportedAttentionError("it takes no position_ids, so its requests cannot share a forward")
        self._config: PretrainedConfig = module.config.get_text_config()  # type: ignore[operator,union-attr]
        _check_kinds(self._config)
        self._length = min(_LENGTH, limits.max_model_len)
        last = limits.max_model_len - self._length
        self._starts = (0, last // 2, last)
        size = len(self._starts) * self._length
        self._ids = (torch.arange(size, device=device) * 7919 + 17) % limits.vocab_size
        self._positions = torch.cat([torch.arange(self._length) + start for start in self._starts]).to(device)
        self._expected = torch.cat([self._own_logits(row) for row in range(len(self._starts))])

    @torch.inference_mode()
    def check(self, attention: PagedAttention) -> ModelFacts:
        """Compare. `attention` is in its place. Raises UnsupportedAttentionError."""
        lengths = [self._length] * len(self._starts)
        ids, positions = self._ids[None], self._positions[None]
        plan, _ = plan_prompts(lengths, frozenset({None}), self._device)
        keep = None
        if "logits_to_keep" in self._parameters:
            keep = torch.tensor([0, ids.shape[1] - 1], device=self._device)
        cache = EmptyCache(0) if "past_key_values" in self._parameters else None
        attention.begin_step(plan)
        with attention.noting_calls() as calls:
            logits = packed_forward.logits(self._module, ids, positions, keep, cache)
        reads_cache_length = cache is not None and cache.layers_read_it
        takes_logits_to_keep = keep is not None and logits.shape[1] == len(keep)
        _check_calls(calls, self._config, self._limits.max_model_len)

        plan, _ = plan_prompts(lengths, frozenset(call.window for call in calls), self._device)
        cache = EmptyCache.of_pack(self._positions) if reads_cache_length else None
        attention.begin_step(plan)
        found = packed_forward.logits(self._module, ids, positions, None, cache)[0]
        self._compare(found)
        head = self._find_head(attention, plan, cache, found) if takes_logits_to_keep else None
        return ModelFacts(tuple(calls), found.shape[1], takes_logits_to_keep, reads_cache_length, head)

    def _find_head(
        self, attention: PagedAttention, plan: AttentionPlan, cache: EmptyCache | None, expected: Tensor
    ) -> ModelHead | None:
        """The head that makes `expected` of the hidden states of the same forward; None: there is none."""
        some = torch.tensor([1, len(expected) - 1], device=self._device)
        for head in ModelHead.candidates(self._module):
            attention.begin_step(plan)
            with head.watch() as said:
                packed_forward.logits(self._module, self._ids[None], self._positions[None], some[:1], cache)
            try:
                found = head.logits(said[-1], some)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
                continue  # this decoder was not asked, or the model reads more of what it says than hidden states
            if found.shape == expected[some].shape and torch.allclose(found, expected[some], rtol=1e-2, atol=1e-2):
                return head
        return None

    def _own_logits(self, row: int) -> Tensor:
        """What the model says of one of the sequences. float32 [T, vocabulary]."""
        start = self._starts[row]
        tokens = slice(row * self._length, (row + 1) * self._length)
        ids = self._ids[None, tokens]
        if start == 0:
            return packed_forward.logits(self._module, ids)[0].float()
        cache = EmptyCache(start) if "past_key_values" in self._parameters else None
        return packed_forward.logits(self._module, ids, self._positions[None, tokens], None, cache)[0].float()

    def _compare(self, found: Tensor) -> None:
        for row, start in enumerate(self._starts):
            tokens = slice(row * self._length, (row + 1) * self._length)
            expected = self._expected[tokens]
            error = float((found[tokens].float() - expected).norm() / expected.norm())
            if not error <= _TOLERANCE.get(found.dtype, 1e-3):
                raise UnsupportedAttentionError(
                    f"with our attention, its logits are not those of its own attention (off by {error:.2g} from "
                    f"position {start} on)"
                )


def _check_kinds(config: PretrainedConfig) -> None:
    """Check that no layer is of a kind that keeps other state than keys and values, or that chooses keys itself."""
    if getattr(config, "index_topk", None):
        raise UnsupportedAttentionError(
            f"an indexer chooses which {config.index_topk} keys a token attends to (sparse attention, DSA: index_topk)"
        )
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind not in _KINDS:
            raise UnsupportedAttentionError(f"layer {layer} is of kind {kind}; known are {', '.join(_KINDS)}")


def _check_calls(calls: list[AttentionCall], config: PretrainedConfig, max_model_len: int) -> None:
    """Check that every layer has called our attention once, with the window of the config."""
    layers = range(config.num_hidden_layers)
    counts = Counter(call.layer for call in calls)
    if not counts:
        raise UnsupportedAttentionError(
            "its class computes attention itself and not through the attention interface of transformers, where our "
            "attention is put in"
        )
    if strays := sorted({*layers, *counts} - {layer for layer in layers if counts[layer] == 1}):
        raise UnsupportedAttentionError(
            f"every layer must use the attention interface once, and {len(strays)} of {len(layers)} do not "
            f"(layer {strays[0]} did {counts[strays[0]]} times)"
        )
    windows = {call.layer: call.window for call in calls}
    types = getattr(config, "layer_types", None)
    if types is None:
        # Some models use their window only for the mask, which is not built here. Then no layer passes a window.
        types = ["sliding_attention"] * len(layers) if not any(windows.values()) else []
    limit = getattr(config, "sliding_window", None)
    for layer, kind in enumerate(types):
        if kind == "sliding_attention":
            if windows[layer] is None and limit and limit < max_model_len:
                raise UnsupportedAttentionError(f"layer {layer} does not pass its sliding window of {limit} tokens on")
        elif kind == "chunked_attention":
            chunk = getattr(config, "attention_chunk_size", None)
            if chunk is None or chunk < max_model_len:
                raise UnsupportedAttentionError(
                    f"layer {layer} attends in chunks of {chunk} tokens, which max_model_len ({max_model_len}) exceeds"
                )
