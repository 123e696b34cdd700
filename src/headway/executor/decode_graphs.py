"""Steps of decodes alone, from CUDA graphs: the whole forward is one launch instead of hundreds.

A graph repeats the work of its capture on the same memory. So the inputs of a step are copied into the tensors of the
capture, and its logits are found in the tensor that the capture wrote.

    step of 11 decodes ─▶ padded to 16 rows ─▶ ids, positions, places copied into [:16] of the static tensors
                                               page tables copied by FlashInfer's plan into its own tensors
                                               replay of the graph for 16 ─▶ logits[:11]

Padding rows are decodes of a slot that no request ever has. Its block table shows block 0 only, so padding rows read
and write there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from headway.executor.flashinfer_attention import PagePlan
from headway.executor.loader import LoadedModel
from headway.executor.transfer import HostArrays
from headway.scheduler.batch import Batch, IntArray

logger = logging.getLogger(__name__)

Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]
"""Captures work for the device, and returns a function that repeats it on the same memory."""

DRIVER_BYTES = 8 << 20
"""Memory that the driver keeps on the device for one graph of a large model: a generous estimate."""


class CudaCapture:
    """Captures CUDA graphs. Graphs of one CudaCapture share memory: replay one at a time. A replay overwrites the
    outputs of the previous one."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Replay:
        # First without a capture: a capture forbids one-time work, such as making handles.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        return graph.replay


def graph_sizes(max_rows: int) -> list[int]:
    """Rows of the graphs for steps of up to `max_rows` decodes: 1, 2, 4, 8, 16, 24, ... and the last."""
    return sorted({size for size in (1, 2, 4, *range(8, max_rows, 8)) if size < max_rows} | {max_rows})


class DecodeGraphs:
    """The graphs of one executor. Used by one thread at a time.

    max_rows: the most decodes in a step. padding_slot: a slot whose block table is all zeros.
    The constructor allocates all memory but that of the graphs. The KV cache comes next, and `capture` last.
    """

    def __init__(self, model: LoadedModel, max_rows: int, padding_slot: int) -> None:
        self.sizes = graph_sizes(max_rows)
        self._model = model
        self._padding_slot = padding_slot

        def static() -> Tensor:
            return torch.zeros(max_rows, dtype=torch.int64, device=model.device)

        self._input_ids, self._positions, self._places = static(), static(), static()
        self._all_rows = torch.arange(max_rows, device=model.device)
        self._logits = torch.zeros(max_rows, model.vocab_size, dtype=model.dtype, device=model.device)
        self._replays: dict[int, Replay] = {}
        assert model.attention.flashinfer is not None, "only its decodes can be captured"
        model.attention.flashinfer.prepare_graphs(self.sizes)

    @torch.inference_mode()
    def capture(self, capture: Capture, tables: IntArray, block_size: int) -> None:
        """Capture every graph, with rows of padding."""
        model = self._model
        for size in reversed(self.sizes):  # the largest first: the others fit into its memory
            arrays = HostArrays()
            plan = PagePlan(self.pad(_NO_ROWS, size), tables, block_size, arrays, size)
            arrays.send(model.device)
            model.attention.begin_step(plan)
            plan.places.tensor = self._places[:size]

            def work(size: int = size) -> None:
                ids, positions, rows = self._input_ids[:size], self._positions[:size], self._all_rows[:size]
                self._logits[:size].copy_(model.compute(ids, positions, rows))

            self._replays[size] = capture(work)

    def size_for(self, batch: Batch) -> int | None:
        """The size of the graph for this step; None if the step is not of decodes alone."""
        if batch.num_decodes < len(batch):
            return None
        return self.sizes[int(np.searchsorted(self.sizes, len(batch)))]

    def pad(self, batch: Batch, size: int) -> Batch:
        """The step with rows of padding, `size` rows in all. Padding rows sample nothing."""
        missing = size - len(batch)
        if not missing:
            return batch

        def extended(column: IntArray, value: int) -> IntArray:
            return np.append(column, np.full(missing, value, np.int32))

        return dataclasses.replace(
            batch,
            num_decodes=size,
            num_tokens=size,
            slots=extended(batch.slots, self._padding_slot),
            positions=extended(batch.positions, 0),
            num_new_tokens=extended(batch.num_new_tokens, 1),
            samples=np.append(batch.samples, np.zeros(missing, np.bool_)),
        )

    def forward(self, input_ids: Tensor, positions: Tensor, plan: PagePlan) -> Tensor:
        """As `LoadedModel.forward`, for a padded step that was planned for its graph. input_ids, positions: int64
        [size]. Returns the logits of all rows, [size, vocab_size], valid until the next call."""
        size = len(input_ids)
        for static, now in (
            (self._input_ids, input_ids),
            (self._positions, positions),
            (self._places, plan.places.tensor),
        ):
            static[:size].copy_(now)
        self._model.attention.begin_step(plan)
        self._replays[size]()
        return self._logits[:size]


_NOTHING = np.empty(0, np.int32)
_NO_ROWS = Batch(
    step_id=0,
    num_decodes=0,
    num_tokens=0,
    slots=_NOTHING,
    positions=_NOTHING,
    num_new_tokens=_NOTHING,
    samples=np.empty(0, np.bool_),
    table_slots=_NOTHING,
    table_columns=_NOTHING,
    table_blocks=_NOTHING,
)
