"""Runs a Hugging Face decoder, one packed forward per step.

launch(batch) -> device thread:
  1 admissions and table changes go into the mirrors
  2 token ids, positions, cache slots and the attention plan are made on the host, and sent in one copy
  3 one forward of [1, T] tokens; the ids of decodes never leave the device
  4 sampling, of the rows that sample
  5 tokens to the host -> on_done(StepResult)
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headway.config import EngineConfig
from headway.executor.attention_plan import AttentionPlan, PlanSettings, token_positions
from headway.executor.base import Executor, OnDone
from headway.executor.decode_kernel import DecodeKernel
from headway.executor.device_thread import DeviceThread
from headway.executor.kv_tensors import KVTensors, bytes_per_block
from headway.executor.loader import LoadedModel, choose_device, load_model, plan_prompts
from headway.executor.model_files import ModelFiles
from headway.executor.sampling_state import Sampled, SamplingState
from headway.executor.transfer import HostArrays
from headway.scheduler.batch import Batch, IntArray, Logprobs, StepResult

logger = logging.getLogger(__name__)

_GIB = 1 << 30
_CPU_GROUP_SIZE = 1 << 19  # numbers of the keys gathered at once that still stay in a cache
_STOP_TIMEOUT = 5.0  # seconds that shutdown waits for the step that runs


class TransformersExecutor(Executor):
    """A model on one device, its KV cache, and the state of every slot.

    num_blocks: blocks of the KV cache, block 0 included; what the scheduler may hand out.

    Raises ValueError when the model is not supported, or when the KV cache cannot hold one request of
    `files.max_model_len` tokens.
    """

    max_in_flight = 2  # all that a step needs of the one before it is on the device, or read on the device's thread

    def __init__(self, files: ModelFiles, config: EngineConfig) -> None:
        self._config = config
        self._max_model_len = files.max_model_len
        self._blocks_per_request = -(-files.max_model_len // config.block_size)
        device = choose_device(config.device)
        self._model: LoadedModel | None = load_model(files, device, config.dtype)
        model = self._model
        self._device = device
        self._sampling = SamplingState(config.max_num_seqs, model.vocab_size, config.seed, device)
        self.num_blocks = self._choose_num_blocks(model)
        model.attention.kv = KVTensors(model.layers, self.num_blocks, config.block_size, model.dtype, device)
        model.attention.kernel = _decode_kernel(config.attention_backend, device, model.dtype)
        self._plan_settings = _plan_settings(model, config.block_size)
        self._tables = np.zeros((config.max_num_seqs, self._blocks_per_request), np.int32)
        self._known_tokens: list[IntArray] = [np.empty(0, np.int32)] * config.max_num_seqs
        self._last_tokens = torch.zeros(config.max_num_seqs, dtype=torch.int64, device=device)
        self._thread: DeviceThread | None = None
        room = f"{self.num_blocks} KV blocks of {config.block_size} tokens"
        kernel = "attention by torch" if model.attention.kernel is None else "decodes by a compiled kernel"
        logger.info("%s on %s in %s: %s, %s", files.name, device, model.dtype, room, kernel)

    def start(self, on_done: OnDone) -> None:
        if self._thread is not None or self._model is None:
            raise RuntimeError("this executor was started already")
        self._thread = DeviceThread(self._run, on_done)

    def launch(self, batch: Batch) -> None:
        if self._thread is None:
            raise RuntimeError("this executor is not running")
        self._thread.launch(batch)

    def restart(self) -> bool:
        """False: neither a thread in native code nor a kernel that hangs can be given up from outside."""
        return False

    def shutdown(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None and not thread.stop(_STOP_TIMEOUT):
            logger.warning("a step did not end within %.0f s of the shutdown; its memory stays", _STOP_TIMEOUT)
            return
        self._release()

    def _release(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.attention.close()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _run(self, batch: Batch) -> StepResult:
        self._apply_changes(batch)
        model = self._model
        assert model is not None
        sampling_rows = np.flatnonzero(batch.samples)
        arrays = HostArrays()
        plan = AttentionPlan(batch, self._tables, self._plan_settings, arrays)
        positions = arrays.add(token_positions(batch))
        prompt_ids = arrays.add(self._chunk_tokens(batch))
        decode_slots = arrays.add(batch.slots[: batch.num_decodes])
        keep = arrays.add(np.cumsum(batch.num_new_tokens)[sampling_rows] - 1)
        sampled_slots = arrays.add(batch.slots[sampling_rows])
        arrays.send(self._device)

        input_ids = torch.cat([self._last_tokens[decode_slots.tensor], prompt_ids.tensor])
        logits = model.forward(input_ids, positions.tensor, plan, keep.tensor)
        if not len(sampling_rows):
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # done means computed, and a failure must show in this step
            return StepResult(step_id=batch.step_id, tokens=np.empty(0, np.int32))
        next_positions = (batch.positions + batch.num_new_tokens)[sampling_rows]
        sampled = self._sampling.sample(logits, batch.slots[sampling_rows], next_positions)
        self._last_tokens[sampled_slots.tensor] = sampled.tokens
        return StepResult(step_id=batch.step_id, tokens=_to_host(sampled.tokens), logprobs=_report(sampled))

    def _apply_changes(self, batch: Batch) -> None:
        """Bring the mirrors up to date; also for a step that fails afterwards, as the core has gone on."""
        self._tables[batch.table_slots, batch.table_columns] = batch.table_blocks
        for admission in batch.admissions:
            self._known_tokens[admission.slot] = admission.tokens
            self._sampling.admit(admission)

    def _chunk_tokens(self, batch: Batch) -> IntArray:
        """Ids of the tokens of all prefill chunks, in row order."""
        ends = batch.positions + batch.num_new_tokens
        chunks = [
            self._known_tokens[batch.slots[row]][batch.positions[row] : ends[row]]
            for row in range(batch.num_decodes, len(batch))
        ]
        return np.concatenate(chunks) if chunks else np.empty(0, np.int32)

    def _choose_num_blocks(self, model: LoadedModel) -> int:
        config, needed = self._config, self._blocks_per_request + 1
        block_bytes = bytes_per_block(model.layers, config.block_size, model.dtype)
        if config.num_blocks is not None:
            num_blocks, source = config.num_blocks, "num_blocks"
        elif self._device.type == "cuda":
            num_blocks = self._measure_free_bytes(model) // block_bytes
            source = f"gpu_memory_utilization {config.gpu_memory_utilization:g}"
        else:
            useful = config.max_num_seqs * self._blocks_per_request + 1
            num_blocks = min(int(config.kv_cache_memory_gb * _GIB) // block_bytes, useful)
            source = f"kv_cache_memory_gb {config.kv_cache_memory_gb:g}"
        if num_blocks < needed:
            raise ValueError(
                f"{source} gives a KV cache of {max(num_blocks, 0)} blocks, and one request of max_model_len "
                f"({self._max_model_len}) tokens needs {needed} with the padding block: "
                f"{needed * block_bytes / _GIB:.3g} GiB"
            )
        return int(num_blocks)

    @torch.inference_mode()
    def _measure_free_bytes(self, model: LoadedModel) -> int:
        """Bytes left for the KV cache on CUDA once the largest step has its scratch memory."""
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        whole, rest = divmod(self._config.max_num_batched_tokens, self._max_model_len)
        lengths = [self._max_model_len] * whole + [rest] * (rest > 0)
        plan, positions = plan_prompts(lengths, model.windows, self._device)
        rows = min(self._config.max_num_seqs, sum(lengths))
        logits = model.forward(torch.zeros_like(positions), positions, plan, torch.arange(rows, device=self._device))
        slots = np.arange(rows, dtype=np.int32)
        self._sampling.sample(logits, slots, np.ones(rows, np.int32))
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device) - before
        del logits
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self._device)
        # What scratch memory the attention kept is in both: counted twice, on the safe side.
        return int(free * self._config.gpu_memory_utilization) - peak


def _decode_kernel(backend: str, device: torch.device, dtype: torch.dtype) -> DecodeKernel | None:
    """What `attention_backend` asks for. Raises ValueError where that cannot be had."""
    fits = device.type == "cpu" and dtype is torch.float32
    kernel = DecodeKernel.compiled(torch.get_num_threads()) if fits and backend != "torch" else None
    if backend == "numba" and kernel is None:
        reason = "numba is not installed (pip install 'headway[cpu]')" if fits else f"this is {dtype} on {device.type}"
        raise ValueError(f"attention_backend numba needs float32 on a CPU and the package numba: {reason}")
    return kernel


def _plan_settings(model: LoadedModel, block_size: int) -> PlanSettings:
    on_cpu = model.device.type == "cpu"
    key_size = max(shape.key_heads * shape.key_dim for shape in model.layers.values())
    return PlanSettings(
        block_size=block_size,
        windows=model.windows,
        device=model.device,
        gathers_decodes=model.attention.kernel is None,
        padding=0.1 if on_cpu else 0.5,  # a call costs more on CUDA, and padding less
        group_keys=_CPU_GROUP_SIZE // key_size if on_cpu else 1 << 30,
    )


def _to_host(tokens: Tensor) -> IntArray:
    return tokens.to(torch.int32).cpu().numpy()


def _report(sampled: Sampled) -> Logprobs | None:
    found = sampled.logprobs
    if found is None:
        return None

    def floats(tensor: Tensor) -> NDArray[np.float32]:
        return tensor.float().cpu().numpy()

    return Logprobs(
        rows=sampled.logprob_rows.astype(np.int32),
        sampled=floats(found.chosen),
        ranks=_to_host(found.ranks),
        top_ids=_to_host(found.top_ids),
        top=floats(found.top),
    )
