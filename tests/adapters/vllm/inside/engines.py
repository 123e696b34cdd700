"""Schedulers as vLLM's engine core makes them, without a model; and requests as they arrive there."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_TARGET_DEVICE": "empty",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

import torch
from imitated_grammars import ImitatedGrammars
from vllm.config import CacheConfig, KVEventsConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

from headway.adapters.vllm import HeadwayScheduler

BLOCK_SIZE = 16
EOS = 2
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "vocab_size": 96,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "torch_dtype": "float32",
}

_folder = tempfile.TemporaryDirectory(prefix="headway-vllm-")  # goes with the process
Path(_folder.name, "config.json").write_text(json.dumps(MODEL))
if not current_platform.device_type:
    current_platform.device_type = "cpu"  # the platform of a build without a device names none
_hash = get_hash_fn_by_name(CacheConfig().prefix_caching_hash_algo)
init_none_hash(_hash)
hash_blocks = get_request_block_hasher(BLOCK_SIZE, _hash)


@dataclass(frozen=True)
class Shape:
    """The sizes of an engine. runner: the model runner, 1 or 2."""

    num_blocks: int = 400
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 256
    max_model_len: int = 512
    prefix_caching: bool = True
    priorities: bool = False
    long_prefill_token_threshold: int = 0
    asynchronous: bool = False
    runner: int = 1


def vllm_config(shape: Shape, kv_events: KVEventsConfig | None = None) -> VllmConfig:
    config = VllmConfig(
        model_config=ModelConfig(
            model=_folder.name, dtype="float32", max_model_len=shape.max_model_len, skip_tokenizer_init=True
        ),
        scheduler_config=SchedulerConfig(
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_batched_tokens,
            max_model_len=shape.max_model_len,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            policy="priority" if shape.priorities else "fcfs",
            long_prefill_token_threshold=shape.long_prefill_token_threshold,
        ),
        cache_config=CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=shape.prefix_caching),
        parallel_config=ParallelConfig(),
        kv_events_config=kv_events,
    )
    # What validation would change on this device.
    config.scheduler_config.max_num_batched_tokens = shape.max_num_batched_tokens
    config.scheduler_config.async_scheduling = shape.asynchronous
    config.cache_config.num_gpu_blocks = shape.num_blocks
    register_all_kvcache_specs(config)
    return config


def kv_cache_config(shape: Shape, spec: Any = None, groups: int = 1) -> KVCacheConfig:
    spec = spec or FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=16, dtype=torch.float32)
    return KVCacheConfig(
        num_blocks=shape.num_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec([f"layer{i}"], spec) for i in range(groups)],
    )


def make_scheduler(shape: Shape, kind: str = "headway", config: VllmConfig | None = None, **options: Any) -> Any:
    """kind: "headway", or "stock" for vLLM's own."""
    config = config or vllm_config(shape)
    made = HeadwayScheduler if kind == "headway" else (AsyncScheduler if shape.asynchronous else Scheduler)
    with _runner(config, shape.runner):
        return made(
            vllm_config=config,
            kv_cache_config=options.pop("kv_cache_config", None) or kv_cache_config(shape),
            structured_output_manager=ImitatedGrammars(),
            block_size=options.pop("block_size", BLOCK_SIZE),
            hash_block_size=BLOCK_SIZE,
            log_stats=True,
            **options,
        )


class _runner:
    """Within it a configuration names the model runner that is wanted; else that follows from the device."""

    def __init__(self, config: VllmConfig, runner: int) -> None:
        self._kind, self._value = type(config), runner == 2

    def __enter__(self) -> None:
        self._former = self._kind.__dict__["use_v2_model_runner"]
        value = self._value
        self._kind.use_v2_model_runner = property(lambda _config: value)

    def __exit__(self, *_error: object) -> None:
        self._kind.use_v2_model_runner = self._former


def make_request(
    name: str, prompt: list[int], *, client: int = 0, priority: int = 0, hashed: bool = False, **sampling: Any
) -> Request:
    """A request as the engine core gets it. hashed: its blocks are hashed, as vLLM's own scheduler needs it."""
    grammar = sampling.pop("grammar", False)
    more = {name: sampling.pop(name) for name in ("cache_salt", "trace_headers") if name in sampling}
    parameters = SamplingParams(
        temperature=0 if "seed" not in sampling else 1,
        structured_outputs=StructuredOutputsParams(regex="[a-z]*") if grammar else None,
        **sampling,
    )
    parameters.update_from_generation_config({}, EOS)
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        sampling_params=parameters,
        pooling_params=None,
        client_index=client,
        priority=priority,
        block_hasher=hash_blocks if hashed else None,
        **more,
    )
