"""The number of blocks of the KV cache: as configured, or as many as fit into memory."""

from __future__ import annotations

import numpy as np
import torch

from headway.config import EngineConfig
from headway.executor.decode_graphs import DRIVER_BYTES, DecodeGraphs
from headway.executor.host_memory import available_bytes
from headway.executor.kv_tensors import bytes_per_block
from headway.executor.loader import LoadedModel
from headway.executor.packed_forward import plan_prompts
from headway.executor.prompt_logprobs import in_pieces, piece_size
from headway.executor.sampling_state import SamplingState
from headway.sampling import MAX_LOGPROBS

_GIB = 1 << 30
_CORE_BYTES = 64  # what the core keeps of each block beside its tokens, about


def choose_num_blocks(
    config: EngineConfig, model: LoadedModel, max_model_len: int, sampling: SamplingState, graphs: DecodeGraphs | None
) -> int:
    """Blocks of the KV cache, the padding block included. All other lasting memory must be allocated already.

    graphs: not captured yet. Raises ValueError if the KV cache cannot hold one request of `max_model_len` tokens, or
    takes more memory than there is.
    """
    blocks_per_request = -(-max_model_len // config.block_size)
    needed = blocks_per_request + 1
    block_bytes = bytes_per_block(model.layers, config.block_size, model.dtype)
    if config.num_blocks is not None:
        num_blocks, source = config.num_blocks, "num_blocks"
    elif model.device.type == "cuda":
        num_blocks = measure_free_bytes(config, model, max_model_len, sampling, graphs) // block_bytes
        source = f"gpu_memory_utilization {config.gpu_memory_utilization:g}"
    else:
        useful = config.max_num_seqs * blocks_per_request + 1
        num_blocks = min(int(config.kv_cache_memory_gb * _GIB) // block_bytes, useful)
        source = f"kv_cache_memory_gb {config.kv_cache_memory_gb:g}"
    if num_blocks < needed:
        fits = max(int(num_blocks) - 1, 0) * config.block_size
        remedy = f", or set max_model_len to at most {fits}" if fits > 1 else ""
        raise ValueError(
            f"{source} gives a KV cache of {max(int(num_blocks), 0)} blocks, which is too small: one request of "
            f"max_model_len ({max_model_len}) tokens needs {needed} with the padding block, "
            f"{needed * block_bytes / 2**20:.1f} MiB: give the KV cache more{remedy}"
        )
    _check_available(source, int(num_blocks), block_bytes, config, model.device)
    return int(num_blocks)


def _check_available(
    source: str, num_blocks: int, block_bytes: int, config: EngineConfig, device: torch.device
) -> None:
    """Raises ValueError if the device has not the memory for so many blocks. The system might promise it all the same,
    and kill this process, or another, when the KV cache fills."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = available_bytes()
        block_bytes = block_bytes * config.tensor_parallel_size + 4 * config.block_size + _CORE_BYTES
    if num_blocks * block_bytes > free:
        raise ValueError(
            f"{source} asks for a KV cache of {num_blocks} blocks, {num_blocks * block_bytes} bytes, and {free} bytes "
            f"of memory are available: num_blocks can be {free // block_bytes} at most"
        )


@torch.inference_mode()
def measure_free_bytes(
    config: EngineConfig, model: LoadedModel, max_model_len: int, sampling: SamplingState, graphs: DecodeGraphs | None
) -> int:
    """Bytes left for the KV cache on CUDA, beside the scratch memory of the largest step and the graphs."""
    whole, rest = divmod(config.max_num_batched_tokens, max_model_len)
    lengths = [max_model_len] * whole + [rest] * (rest > 0)
    scratch = _scratch_bytes(model, lengths, min(config.max_num_seqs, sum(lengths)), sampling)
    if graphs is not None:
        # Graphs share memory, as much as the largest graph needs.
        scratch += _scratch_bytes(model, [1] * graphs.sizes[-1], graphs.sizes[-1], None)
        scratch += len(graphs.sizes) * DRIVER_BYTES
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(model.device)
    # Scratch memory that the attention keeps is counted twice: in `free` and in `scratch`. That is the safe side.
    return int(free * config.gpu_memory_utilization) - scratch


def _scratch_bytes(model: LoadedModel, lengths: list[int], rows: int, sampling: SamplingState | None) -> int:
    """Bytes that a step of whole prompts allocates while it runs, with the logits of `rows` tokens and sampling."""
    device = model.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    plan, positions = plan_prompts(lengths, model.windows, device)
    ids, tokens = torch.zeros_like(positions), torch.arange(sum(lengths), device=device)
    logits, logits_of = model.forward_for_more(ids, positions, plan, tokens[:rows])
    if sampling is not None:
        size = piece_size(model.vocab_size)
        in_pieces(logits_of, tokens[:size], ids[:size], MAX_LOGPROBS, size)
        sampling.sample(logits, np.arange(rows, dtype=np.int32), np.ones(rows, np.int32))
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)
