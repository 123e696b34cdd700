"""transformers' continuous batching as the workloads see it. Imports nothing of headway.

The clock measures a turn of its own loop without the forward: `prepare_next_batch` and `update_batch`, without the
making of the forward's tensors, which in other engines is the work of the model runner. It is set up as for flash
attention on an accelerator: the blocks of a decoding request go into a table, and not token by token into an index.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.requests import RequestState
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

if TYPE_CHECKING:
    from headway_lab.schedulers.workloads import Capacity

NAME = "transformers"
VERSION = transformers.__version__

BLOCK_SIZE = 16  # of `Capacity.num_blocks`
PAGE_SIZE = 256  # tokens in one of its own blocks: its default
MAX_PAGES = 32  # of a request whose blocks go into a table: its default; a longer one is served by indices
TOKEN = 7_000  # what every request is answered

torch.set_num_threads(1)


class System:
    """`ContinuousBatchProcessor` with the first-in-first-out scheduler, its default, and prefix sharing."""

    def __init__(self, capacity: Capacity) -> None:
        if capacity.features:
            raise ValueError("transformers' continuous batching has no priorities and no penalties to switch on")
        # No logits are computed; a vocabulary would only have memory set aside for them.
        model = LlamaConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, vocab_size=8
        )
        model._attn_implementation = "flash_attention_2"
        cpu = torch.device("cpu")
        config = ContinuousBatchingConfig(
            page_size=PAGE_SIZE,
            num_blocks=capacity.num_blocks * BLOCK_SIZE // PAGE_SIZE,
            max_batch_tokens=capacity.max_num_batched_tokens,
            max_requests_per_batch=capacity.max_num_seqs,
            max_blocks_per_request=MAX_PAGES,
            max_memory_percent=0.6,
            allow_block_sharing=capacity.prefix_caching,
            use_async_batching=False,
            use_cuda_graph=(False, False),
        )
        helper = DistributedHelper(device_mesh=None, cpu_group_timeout=None)
        cache = PagedAttentionCache(model, config, cpu, helper, dtype=torch.float32)
        self._requests: queue.Queue[RequestState] = queue.Queue()
        self._dropped: queue.Queue[str] = queue.Queue()
        self._router = OutputRouter()
        self._processor = ContinuousBatchProcessor(
            cache=cache,
            config=model,
            generation_config=GenerationConfig(do_sample=False),
            continuous_batching_config=config,
            logit_processor=ContinuousBatchingLogitsProcessorList(LogitsProcessorList()),
            input_queue=self._requests,
            cancel_queue=self._dropped,
            output_router=self._router,
            background_thread_status=BackgroundThreadStatus(),
            model_device=cpu,
            model_dtype=torch.float32,
            scheduler=FIFOScheduler(cache, None, capacity.max_num_seqs),
            distributed_helper=helper,
        )
        self._num_preemptions = 0
        self._count_preemptions()
        self._batch: dict[str, Any] = {}
        self._tensors = self._processor.inputs_and_outputs.prepare_batch_tensors
        self._processor.inputs_and_outputs.prepare_batch_tensors = self._put_off_tensors

    def pack(self, tokens: NDArray[np.int32]) -> list[int]:
        """A list: there is no process in between."""
        return tokens.tolist()

    def create(self, name: str, prompt: list[int], max_tokens: int, priority: int) -> RequestState:
        return RequestState(request_id=name, initial_tokens=list(prompt), max_new_tokens=max_tokens, eos_token_id=-1)

    def add(self, request: RequestState) -> None:
        self._requests.put(request)

    def schedule(self) -> dict[str, Any] | None:
        return self._batch if self._processor.prepare_next_batch() else None

    def size(self, batch: dict[str, Any]) -> tuple[int, int]:
        return len(batch["requests_in_batch"]), batch["num_q_tokens"]

    def compute(self, batch: dict[str, Any]) -> None:
        self._tensors(**batch)
        self._processor.inputs_and_outputs.output_ids[0, : len(batch["requests_in_batch"])] = TOKEN

    def update(self, batch: dict[str, Any], result: None) -> int:
        self._processor.update_batch()
        ended = self._router.output_queue.qsize()
        if ended:
            self._router.output_queue.queue.clear()
        return ended

    def num_ended(self, outcome: int) -> int:
        return outcome

    def end(self, request: RequestState) -> None:
        self._dropped.put(request.request_id)

    def forget_cached(self) -> None:
        self._processor.cache.evict_cached_blocks()

    @property
    def num_preemptions(self) -> int:
        return self._num_preemptions

    def _put_off_tensors(self, **batch: Any) -> None:
        """Instead of making a batch's tensors: remember of what, for `compute`."""
        self._batch = batch

    def _count_preemptions(self) -> None:
        """A preempted request is queued again under its own name: so count the requests queued, less the requests
        added."""
        scheduler = self._processor.scheduler
        add, known = scheduler.add_waiting_request, set[str]()

        def counting(state: RequestState) -> None:
            self._num_preemptions += state.request_id in known
            known.add(state.request_id)
            add(state)

        scheduler.add_waiting_request = counting
