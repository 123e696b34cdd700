"""Runs a Hugging Face decoder, one packed forward per step.

launch(batch) -> device thread:
  1 apply admissions and changes of block tables to the mirrors
  2 make token ids, positions, places in the KV cache and the attention plan on the host; send them in one copy
  3 run one forward of [1, T] tokens, or replay a graph; the token ids of decodes never leave the device
  4 sample the rows that sample; judge the prompts of the chunks that ask for it
  5 start to copy the tokens to the host
On CUDA the device thread goes on with the next step here, and the result thread waits. On a CPU there is no wait.
  6 tokens on the host -> on_done(StepResult)
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headway.config import EngineConfig, Role
from headway.error_text import first_line
from headway.executor.attention_backend import choose_backend
from headway.executor.attention_plan import token_positions
from headway.executor.base import Executor, OnDone
from headway.executor.decode_graphs import CudaCapture, DecodeGraphs
from headway.executor.device_thread import DeviceThread
from headway.executor.flashinfer_attention import PagePlan
from headway.executor.kv_budget import choose_num_blocks
from headway.executor.kv_tensors import KVTensors, kv_layout
from headway.executor.load_stages import stage
from headway.executor.loader import LoadedModel, choose_device, load_model
from headway.executor.onednn_caches import bound_caches
from headway.executor.prompt_logprobs import PromptJudge
from headway.executor.sampling_state import Sampled, SamplingState
from headway.executor.transfer import HostArrays, HostCopies, on
from headway.model_files import ModelFiles
from headway.placement import Placement
from headway.scheduler.batch import Batch, IntArray, Logprobs, StepResult
from headway.transfer.memory import KVMemory
from headway.transfer.model_digest import model_digest

logger = logging.getLogger(__name__)

_STOP_TIMEOUT = 5.0  # seconds that shutdown waits for the step that runs


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on the device. `result` may be read after `arrived.wait()`."""

    result: StepResult
    arrived: HostCopies

    def fetch(self) -> StepResult:
        self.arrived.wait()
        return self.result


class TransformersExecutor(Executor):
    """A model on one device, its KV cache, and the state of every slot.

    num_blocks: blocks of the KV cache, block 0 included. prompts: counts what was computed of
        their log-probabilities.

    Raises ValueError if the model is not supported, or if the KV cache cannot hold one request of
    `files.limits.max_model_len` tokens.
    """

    max_in_flight = 2  # a step needs nothing of the previous step on the host
    reads_same_step = True  # attention writes the KV of all rows before any row attends

    def __init__(self, files: ModelFiles, config: EngineConfig) -> None:
        device = self._device = choose_device(config.device)
        bound_caches()
        slots = config.max_num_seqs
        blocks_per_request = -(-files.limits.max_model_len // config.block_size)
        # One row more than there are slots, always zeros: the slot of padding rows in graphs.
        self._tables = np.zeros((slots + 1, blocks_per_request), np.int32)
        self._last_tokens = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._known_tokens: list[IntArray] = [np.empty(0, np.int32)] * slots
        self._thread: DeviceThread | None = None
        with on(device):
            model = load_model(files, device, config.dtype, config.tensor_parallel_size)
            self._model: LoadedModel | None = model
            self._sampling = SamplingState(slots, model.vocab_size, config.seed, device)
            self.prompts = PromptJudge(slots, model.vocab_size)
            with stage("preparing the kernels of attention"):
                self._backend = choose_backend(
                    config.attention_backend,
                    model,
                    block_size=config.block_size,
                    max_rows=slots,
                    blocks_per_request=blocks_per_request,
                )
            # Graphs with the sums of several ranks in them have not run on a device yet.
            with_graphs = self._backend.takes_graphs and not config.enforce_eager and config.tensor_parallel_size == 1
            self._graphs: DecodeGraphs | None = None
            if with_graphs:
                self._graphs = DecodeGraphs(model, slots, padding_slot=slots)
            with stage("measuring a step, and taking memory for the KV cache"):
                self.num_blocks = self._agreed(
                    choose_num_blocks(config, model, files.limits.max_model_len, self._sampling, self._graphs)
                )
                self._kv_memory = self._shared_memory(files, config)
                model.attention.kv = KVTensors(
                    model.layers, self.num_blocks, config.block_size, model.dtype, device, self._kv_memory
                )
            if self._graphs is not None:
                with stage(f"capturing {len(self._graphs.sizes)} CUDA graphs"):
                    self._capture(self._graphs)
        self.placement = Placement(str(device), str(model.dtype).removeprefix("torch."), self._backend.name)
        room = f"{self.num_blocks} KV blocks of {config.block_size} tokens"
        graphs = "no graphs" if self._graphs is None else f"{len(self._graphs.sizes)} graphs"
        backend = f"attention by {self._backend.name}, {graphs}"
        logger.info("%s on %s in %s: %s, %s", files.name, device, model.dtype, room, backend)

    def kv_memory(self) -> KVMemory | None:
        return self._kv_memory

    def start(self, on_done: OnDone) -> None:
        if self._thread is not None or self._model is None:
            raise RuntimeError("this executor was started already")
        if _waits_for(self._device):
            self._thread = DeviceThread(self._enqueue, on_done, fetch=self._fetch)
        else:
            self._thread = DeviceThread(lambda batch: self._fetch(self._enqueue(batch)), on_done)

    def launch(self, batch: Batch) -> None:
        if self._thread is None:
            raise RuntimeError("this executor is not running")
        self._thread.launch(batch)

    def restart(self) -> bool:
        """False: neither a thread in native code nor a hanging kernel can be stopped from outside."""
        return False

    def shutdown(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None and not thread.stop(_STOP_TIMEOUT):
            logger.warning("a step did not end within %.0f s of the shutdown; its memory stays", _STOP_TIMEOUT)
            return
        self._release()

    def _release(self) -> None:
        model, self._model, self._graphs = self._model, None, None
        if model is not None:
            model.attention.close()
            if self._kv_memory is not None:
                self._kv_memory.close()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _shared_memory(self, files: ModelFiles, config: EngineConfig) -> KVMemory | None:
        """Memory for the KV cache that other engines can read, for a role that moves KV. None: it is not needed."""
        model = self._model
        assert model is not None
        if config.role is Role.MIXED or self._device.type != "cpu":
            return None
        layout = kv_layout(
            model.layers, self.num_blocks, config.block_size, model.dtype, model_digest(files.kv_files())
        )
        return KVMemory(layout)

    def _capture(self, graphs: DecodeGraphs) -> None:
        """Capture the graphs. If the model allows none, go on without graphs."""
        try:
            graphs.capture(CudaCapture(), self._tables, self._backend.settings.block_size)
        except RuntimeError as error:  # the forward of some models cannot be captured
            logger.warning("decodes run without CUDA graphs, as with --enforce-eager: %s", first_line(error))
            self._graphs = None

    @torch.inference_mode()
    def _enqueue(self, batch: Batch) -> Launched:
        """Put a step on the device, without waiting for the device."""
        self._apply_changes(batch)
        model, device, graphs = self._model, self._device, self._graphs
        assert model is not None
        graph_size = None if graphs is None else graphs.size_for(batch)
        rows = batch if graphs is None or graph_size is None else graphs.pad(batch, graph_size)
        sampling_rows = np.flatnonzero(rows.samples)
        arrays = HostArrays()
        plan = self._backend.plan(rows, self._tables, arrays, graph_size)
        positions = arrays.add(token_positions(rows))
        prompt_ids = arrays.add(self._chunk_tokens(rows))
        decode_slots = arrays.add(rows.slots[: rows.num_decodes])
        keep = arrays.add(np.cumsum(rows.num_new_tokens)[sampling_rows] - 1)
        sampled_slots = arrays.add(rows.slots[sampling_rows])
        asked = self.prompts.asked(batch, arrays)
        with on(device):
            arrays.send(device)
            input_ids = torch.cat([self._last_tokens[decode_slots.tensor], prompt_ids.tensor])
            if graph_size is not None:
                assert graphs is not None and isinstance(plan, PagePlan)
                logits = graphs.forward(input_ids, positions.tensor, plan)[: len(batch)]
            elif asked is None:
                logits = model.forward(input_ids, positions.tensor, plan, keep.tensor)
            else:
                logits, logits_of = model.forward_for_more(input_ids, positions.tensor, plan, keep.tensor)
            copies = HostCopies(device)
            judged = None if asked is None else self.prompts.judge(asked, logits_of, copies)
            if len(sampling_rows):
                next_positions = (batch.positions + batch.num_new_tokens)[sampling_rows]
                sampled = self._sample(logits, batch.slots[sampling_rows], next_positions)
                self._last_tokens[sampled_slots.tensor] = sampled.tokens
                tokens = copies.add(sampled.tokens.to(torch.int32))
                logprobs = _report(sampled, copies)
            else:
                tokens, logprobs = np.empty(0, np.int32), None
            result = StepResult(batch.step_id, tokens, logprobs, prompt_logprobs=judged)
            copies.send()
            if len(sampling_rows):
                self._sampling.drew(batch.slots[sampling_rows], tokens, copies)
        return Launched(result, copies)

    def _fetch(self, launched: Launched) -> StepResult:
        """The result of a step, which may still run."""
        return launched.fetch()

    def _agreed(self, num_blocks: int) -> int:
        """The blocks of the KV cache, where `num_blocks` fit here. For executors that share a model."""
        return num_blocks

    def _sample(self, logits: Tensor, slots: IntArray, positions: IntArray) -> Sampled:
        """See `SamplingState.sample`. For executors that share a model."""
        return self._sampling.sample(logits, slots, positions)

    def _apply_changes(self, batch: Batch) -> None:
        """Bring the mirrors up to date. Also done for a step that then fails, as the core counts on these changes."""
        self._tables[batch.table_slots, batch.table_columns] = batch.table_blocks
        for admission in batch.admissions:
            self._known_tokens[admission.slot] = admission.tokens
            self._sampling.admit(admission)
            self.prompts.admit(admission)

    def _chunk_tokens(self, batch: Batch) -> IntArray:
        """Token ids of all prefill chunks, in row order."""
        ends = batch.positions + batch.num_new_tokens
        chunks = [
            self._known_tokens[batch.slots[row]][batch.positions[row] : ends[row]]
            for row in range(batch.num_decodes, len(batch))
        ]
        return np.concatenate(chunks) if chunks else np.empty(0, np.int32)


def _waits_for(device: torch.device) -> bool:
    """Whether the device works asynchronously, so that a thread must wait for it."""
    return device.type == "cuda"


def _report(sampled: Sampled, copies: HostCopies) -> Logprobs | None:
    found = sampled.logprobs
    if found is None:
        return None
    return Logprobs(
        rows=sampled.logprob_rows.astype(np.int32),
        sampled=copies.add(found.chosen.float()),
        ranks=copies.add(found.ranks.to(torch.int32)),
        top_ids=copies.add(found.top_ids.to(torch.int32)),
        top=copies.add(found.top.float()),
    )
