"""Attention by FlashInfer, whose kernels read the paged KV cache in place: CUDA, half precision.

FlashInfer's words for our block tables: a page is a block, a cache tensor is [page, offset, head, dim] ("NHD"), and the
rows of a step are

    query_starts  [0, 1, 2, 2 + 5]        of row i: tokens [query_starts[i], query_starts[i + 1]) of the pack
    page_starts   [0, 2, 3, 3 + 4]                  blocks pages[page_starts[i] : page_starts[i + 1]]
    last_lengths  [7, 1, 16]                        tokens in the last page, new tokens included

A wrapper of FlashInfer plans once per step and runs once per layer. Layers of the same kind share a wrapper. A step of
decodes alone goes to the decode wrapper. A step with chunks goes to the prefill wrapper, all of its rows.
See https://docs.flashinfer.ai, `BatchDecodeWithPagedKVCacheWrapper` and `BatchPrefillWithPagedKVCacheWrapper`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headway.executor.attention_plan import AttentionCall, token_places
from headway.executor.kv_tensors import KVTensors
from headway.executor.transfer import HostArrays, pinned
from headway.scheduler.batch import Batch, IntArray

# The kernel "fa2": the same on every architecture, works in graphs, log-sums to the base of 2. It never reads behind a
# row's last token, so nothing has to be cleared there.
_KERNELS = "fa2"
_WORKSPACE = 128 << 20  # bytes, which its documentation recommends
_LN_2 = math.log(2)

DEVICES = ("cuda",)
DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 128, 256)


def why_not(calls: Iterable[AttentionCall], device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why FlashInfer cannot compute this model here, or None."""
    if device.type not in DEVICES:
        return f"it needs CUDA, and this is {device.type}"
    if dtype not in DTYPES:
        return f"it needs float16 or bfloat16, and this is {str(dtype).removeprefix('torch.')}"
    for call in calls:
        shape = call.shape
        if shape.key_dim != shape.value_dim or shape.key_dim not in HEAD_DIMS:
            dims = f"{shape.key_dim} numbers to a key and {shape.value_dim} to a value"
            return f"it needs heads of {', '.join(map(str, HEAD_DIMS))} numbers, and layer {call.layer} has {dims}"
    try:
        importlib.import_module("flashinfer")
    except ImportError as error:
        return f"it is not installed (pip install 'headway[cuda]'): {error}"
    return None


class PagePlan:
    """A step in FlashInfer's form. Usable after `arrays.send`.

    places: int64 [T], the place of each token's key and value. pages: the blocks of all rows, row by row. graph_size:
    the step is `graph_size` decodes, and runs from the graph of that size. The other fields: see above, int32.
    """

    def __init__(
        self, batch: Batch, tables: IntArray, block_size: int, arrays: HostArrays, graph_size: int | None = None
    ) -> None:
        ends = batch.positions + batch.num_new_tokens
        counts = -(-ends // block_size)
        rows = np.repeat(np.arange(len(batch)), counts)
        self.page_starts = _starts(counts)
        columns = np.arange(len(rows)) - self.page_starts[rows]
        self.places = arrays.add(token_places(batch, tables, block_size))
        self.pages = arrays.add(tables[batch.slots[rows], columns])
        self.last_lengths = (ends - (counts - 1) * block_size).astype(np.int32)
        self.query_starts = _starts(batch.num_new_tokens)
        self.decodes_only = batch.num_decodes == len(batch)
        self.graph_size = graph_size


@dataclass(frozen=True, slots=True)
class _Kind:
    """The properties of a layer on which a plan depends."""

    query_heads: int
    key_heads: int
    head_dim: int
    window: int | None
    softcap: float | None
    scaling: float

    @classmethod
    def of(cls, call: AttentionCall) -> _Kind:
        shape = call.shape
        return cls(call.query_heads, shape.key_heads, shape.key_dim, call.window, call.softcap, call.scaling)


class FlashInferAttention:
    """The wrappers of one executor and their memory. Used by one thread at a time.

    calls: one per layer. max_rows: the most rows of one step. blocks_per_request: blocks of the longest request.
    """

    def __init__(
        self,
        calls: Iterable[AttentionCall],
        *,
        block_size: int,
        max_rows: int,
        blocks_per_request: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._library: Any = importlib.import_module("flashinfer")
        self._kinds = {call.layer: _Kind.of(call) for call in calls}
        self._block_size = block_size
        self._max_rows = max_rows
        self._dtype = dtype
        self._device = device
        on_cuda = device.type == "cuda"
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if on_cuda else 0
        needs = (_workspace_bytes(kind, max_rows, multiprocessors) for kind in self._kinds.values())
        size = max(_WORKSPACE, *needs)
        self._workspace = torch.zeros(size, dtype=torch.uint8, device=device)
        # Graphs read their page tables here. One graph runs at a time, so all graphs share these tensors.
        self._page_starts = torch.zeros(max_rows + 1, dtype=torch.int32, device=device)
        self._pages = torch.zeros(max_rows * blocks_per_request, dtype=torch.int32, device=device)
        self._last_lengths = torch.ones(max_rows, dtype=torch.int32, device=device)
        self._wrappers: dict[tuple[_Kind, str | int], Any] = {}
        self._planned: dict[_Kind, Any] = {}
        self._copied = torch.cuda.Event(blocking=True) if on_cuda else None

    def prepare_graphs(self, sizes: Iterable[int]) -> None:
        """Make the wrappers for graphs of these sizes (rows). Allocates memory."""
        for size in sizes:
            for kind in set(self._kinds.values()):
                self._wrapper(kind, size)

    def begin_step(self, plan: PagePlan) -> None:
        """Plan a step. Must be called before its forward, and before each replay of a graph."""
        if self._copied is not None:
            # A wrapper uses the same pinned memory for each plan, and the stream copies from it later. So wait for the
            # copy of the previous plan. With two steps in flight that copy is done by now.
            self._copied.synchronize()
        pages = plan.pages.tensor.to(torch.int32)
        page_starts, last_lengths, query_starts = (
            pinned(array, self._device) for array in (plan.page_starts, plan.last_lengths, plan.query_starts)
        )
        which = plan.graph_size or ("decode" if plan.decodes_only else "prefill")
        for kind in set(self._kinds.values()):
            wrapper = self._planned[kind] = self._wrapper(kind, which)
            settings = {
                "window_left": -1 if kind.window is None else kind.window - 1,  # the keys before that of the query
                "logits_soft_cap": kind.softcap or 0.0,
                "sm_scale": kind.scaling,
                "q_data_type": self._dtype,
                "kv_data_type": self._dtype,
            }
            shape = (kind.query_heads, kind.key_heads, kind.head_dim, self._block_size)
            if which == "prefill":
                wrapper.plan(query_starts, page_starts, pages, last_lengths, *shape, causal=True, **settings)
            else:
                wrapper.plan(page_starts, pages, last_lengths, *shape, **settings)
        if self._copied is not None:
            self._copied.record()

    def attend(self, layer: int, query: Tensor, kv: KVTensors, sinks: Tensor | None) -> Tensor:
        """query [Hq, T, D] -> [T, Hq, D]. sinks: [Hq], per head a score that takes weight and has no value."""
        wrapper = self._planned[self._kinds[layer]]
        queries = query.transpose(0, 1).contiguous()
        if sinks is None:
            out: Tensor = wrapper.run(queries, kv.layers[layer])
            return out
        out, log_sums = wrapper.run(queries, kv.layers[layer], return_lse=True)  # float32 [T, Hq], to the base of 2
        share = torch.sigmoid(log_sums * _LN_2 - sinks.float())  # exp(log sum) of exp(log sum) + exp(sink)
        return out * share[:, :, None].to(out.dtype)

    def _wrapper(self, kind: _Kind, which: str | int) -> Any:
        """The wrapper for "prefill", for "decode", or for the graph of `which` decodes."""
        found = self._wrappers.get((kind, which))
        if found is None:
            found = self._wrappers[kind, which] = self._make_wrapper(which)
        return found

    def _make_wrapper(self, which: str | int) -> Any:
        if which == "prefill":
            return self._library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD", backend=_KERNELS)
        # With tensor cores, any number of query heads can share a key head.
        if which == "decode":
            return self._library.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace, "NHD", use_tensor_cores=True, backend=_KERNELS
            )
        size = int(which)
        return self._library.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=self._page_starts[: size + 1],
            paged_kv_indices_buffer=self._pages,
            paged_kv_last_page_len_buffer=self._last_lengths[:size],
            backend=_KERNELS,
        )


def _starts(counts: IntArray) -> IntArray:
    """The start of each part if parts of these lengths follow one another, and the end of the last. int32 [n + 1]."""
    starts = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    return starts


def _workspace_bytes(kind: _Kind, max_rows: int, multiprocessors: int) -> int:
    """Bytes for long rows that several thread blocks share: float32, for each tile of queries and each part of a row.

    FlashInfer's planner splits the rows of a small step until there are two thread blocks per multiprocessor. In a
    graph all rows are split; each part takes the tiles that its query heads fill, and perhaps one more.
    """
    group = kind.query_heads // kind.key_heads
    tile = 16 if group <= 16 else 64 if group <= 64 else 128
    shared = 2 * multiprocessors // kind.key_heads
    queries = max(shared * 128, max(shared, 2 * max_rows) * tile)
    return queries * kind.query_heads * (kind.head_dim + 1) * 4
