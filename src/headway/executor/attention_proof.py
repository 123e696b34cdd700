"""The proof that FlashInfer computes the same attention as torch, made for each model when it is loaded.

FlashInfer and torch compute attention over the same random keys and values: for decodes, for decodes of a graph, and
for decodes and chunks in one step. Places that no row may see hold large values, so reading one place too many shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from headway.executor.attention import PagedAttention
from headway.executor.attention_plan import AttentionCall, AttentionPlan, PlanSettings, token_places
from headway.executor.flashinfer_attention import FlashInferAttention, PagePlan
from headway.executor.kv_tensors import KVTensors
from headway.executor.transfer import HostArrays, to_device
from headway.scheduler.batch import Batch, IntArray

_TOLERANCE = 0.03  # as a share of the norm of the output; half precision is within 0.01
_UNSEEN = 100.0  # thousands of keys share a weight of 1; one of these values outweighs all of them
_CHUNK = 5


@torch.inference_mode()
def prove(
    flashinfer: FlashInferAttention,
    calls: Iterable[AttentionCall],
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    """The first layer in which FlashInfer computes something else, as text; None if there is none."""
    for call in {replace(call, layer=0): call for call in calls}.values():  # one of each kind
        far = 3 + (call.window or 2 * block_size)
        decodes = [(position, 1) for position in (0, block_size - 1, block_size, far)]
        chunks = [(0, _CHUNK), (far, _CHUNK)]
        for name, rows, num_decodes, graph_size in (
            ("decodes", decodes, len(decodes), None),
            ("decodes of a graph", decodes[-1:], 1, 1),
            ("decodes and chunks", decodes + chunks, len(decodes), None),
        ):
            error = _error(flashinfer, call, rows, num_decodes, graph_size, block_size, dtype, device)
            if not error <= _TOLERANCE:
                return f"for {name}, what it computes in layer {call.layer} is off by {error:.2g}"
    return None


def _error(
    flashinfer: FlashInferAttention,
    call: AttentionCall,
    rows: list[tuple[int, int]],
    num_decodes: int,
    graph_size: int | None,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """The difference between FlashInfer and torch, relative to the norm. rows: (first position, tokens) of each row."""
    batch = _batch(rows, num_decodes)
    width = int((batch.positions + batch.num_new_tokens).max() - 1) // block_size + 1
    # Scattered blocks, and none of them block 0.
    tables = np.random.default_rng(0).permutation(len(rows) * width).reshape(len(rows), width).astype(np.int32) + 1
    random = torch.Generator().manual_seed(0)

    def normal(heads: int, tokens: int, dim: int) -> Tensor:
        return torch.randn(1, heads, tokens, dim, generator=random).to(device, dtype)

    shape = call.shape
    attention = PagedAttention(1 << 30)
    attention.flashinfer = flashinfer
    kv = attention.kv = KVTensors({call.layer: shape}, tables.size + 1, block_size, dtype, device)
    for cache in kv.layers[call.layer]:
        cache.fill_(_UNSEEN)
    past = _past(batch, call.window)
    keys, values = (normal(shape.key_heads, past.num_tokens, shape.key_dim)[0].transpose(0, 1) for _ in range(2))
    kv.write(call.layer, to_device(token_places(past, tables, block_size), device), keys, values)

    query = normal(call.query_heads, batch.num_tokens, shape.key_dim)
    key, value = (normal(shape.key_heads, batch.num_tokens, shape.key_dim) for _ in range(2))
    sinks = normal(1, 1, call.query_heads).flatten() if call.has_sinks else None
    settings = PlanSettings(block_size, frozenset({call.window}), device, gathers_decodes=True, padding=0, group_keys=0)

    def compute(plan: AttentionPlan | PagePlan, arrays: HostArrays) -> Tensor:
        arrays.send(device)
        attention.begin_step(plan)
        out = attention.forward(call.layer, query, key, value, call.scaling, call.window, call.softcap, sinks)
        return out.float().clone()

    arrays = HostArrays()
    found = compute(PagePlan(batch, tables, block_size, arrays, graph_size), arrays)
    arrays = HostArrays()
    expected = compute(AttentionPlan(batch, tables, settings, arrays), arrays)
    return float((found - expected).norm() / expected.norm())


def _batch(rows: list[tuple[int, int]], num_decodes: int) -> Batch:
    positions, counts = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    nothing = np.empty(0, np.int32)
    return Batch(
        step_id=0,
        num_decodes=num_decodes,
        num_tokens=int(counts.sum()),
        slots=np.arange(len(rows), dtype=np.int32),
        positions=positions,
        num_new_tokens=counts,
        samples=np.ones(len(rows), np.bool_),
        table_slots=nothing,
        table_columns=nothing,
        table_blocks=nothing,
    )


def _past(batch: Batch, window: int | None) -> Batch:
    """The earlier tokens that the tokens of `batch` see, as a batch."""
    firsts: IntArray = (
        np.zeros_like(batch.positions) if window is None else np.maximum(batch.positions - np.int32(window - 1), 0)
    )
    rows = list(zip(firsts.tolist(), (batch.positions - firsts).tolist(), strict=True))
    return _batch(rows, 0)
