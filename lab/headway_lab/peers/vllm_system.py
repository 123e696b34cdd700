"""vLLM's v1 scheduler as the workloads see it. Runs in vLLM's environment: imports nothing of headway.

The scheduler gets the input that an engine core would give it: a configuration, a KV cache of one layer group, and an
output as vLLM's model runner (its second) makes it, with invented tokens. No model is loaded and nothing is compiled.

vLLM has two schedulers: for steps that follow each other, and for overlapped steps, where a step is scheduled before
the result of the step before has come. Another scheduler can stand in the place of both (`--scheduler-cls`).
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import os
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

os.environ |= {
    "VLLM_TARGET_DEVICE": "empty",
    "VLLM_USE_V2_MODEL_RUNNER": "1",  # the leaner of its two outputs
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

import torch
import vllm
from vllm.config import CacheConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

if TYPE_CHECKING:
    from headway_lab.schedulers.workloads import Capacity

NAME = "vllm"
VERSION = vllm.__version__

BLOCK_SIZE = 16
TOKEN = 7_000  # what every request is answered
EOS = 2

_folder = tempfile.TemporaryDirectory(prefix="headway-peer-")  # goes with the process
if not current_platform.device_type:
    current_platform.device_type = "cpu"  # the platform of a build without a device names none
_hash = get_hash_fn_by_name(CacheConfig().prefix_caching_hash_algo)
init_none_hash(_hash)
_hash_blocks = get_request_block_hasher(BLOCK_SIZE, _hash)


class System:
    """The scheduler with log_stats, as the engine core makes it; the request as it arrives there, blocks hashed.

    scheduler: the name of the class, as after `--scheduler-cls`; None: vLLM's own. overlapped: `update` applies the
    result of the step before.
    """

    def __init__(self, capacity: Capacity, scheduler: str | None = None, overlapped: bool = False) -> None:
        config = VllmConfig(
            model_config=ModelConfig(
                model=_model(), dtype="float16", skip_tokenizer_init=True, max_model_len=capacity.max_model_len
            ),
            scheduler_config=SchedulerConfig(
                max_num_seqs=capacity.max_num_seqs,
                max_num_batched_tokens=capacity.max_num_batched_tokens,
                max_model_len=capacity.max_model_len,
                enable_chunked_prefill=True,
                async_scheduling=overlapped,
                is_encoder_decoder=False,
                policy="priority" if capacity.features else "fcfs",
                scheduler_cls=scheduler,
            ),
            cache_config=CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=capacity.prefix_caching),
            parallel_config=ParallelConfig(),
        )
        config.cache_config.num_gpu_blocks = capacity.num_blocks
        register_all_kvcache_specs(config)
        layer = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32)
        self._scheduler = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=capacity.num_blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)],
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
            hash_block_size=BLOCK_SIZE,
            log_stats=True,
        )
        # As the engine core does: a scheduler may have switched the hashes off.
        self._hasher = _hash_blocks if config.cache_config.enable_prefix_caching else None
        self._features = capacity.features
        self._num_prompt: dict[str, int] = {}
        self._num_preemptions = 0
        self._in_flight: deque[tuple[Any, ModelRunnerOutput]] = deque()
        self._num_overlapping = int(overlapped)

    def pack(self, tokens: NDArray[np.int32]) -> list[int]:
        """A list: so they come out of the message to the engine core."""
        return tokens.tolist()

    def create(self, name: str, prompt: list[int], max_tokens: int, priority: int) -> Request:
        return Request(
            request_id=name,
            prompt_token_ids=prompt,
            sampling_params=self._sampling(max_tokens),
            pooling_params=None,
            priority=priority if self._features else 0,
            block_hasher=self._hasher,
        )

    def add(self, request: Request) -> None:
        self._scheduler.add_request(request)

    def schedule(self) -> Any:
        return self._scheduler.schedule()

    def size(self, batch: Any) -> tuple[int, int]:
        return len(batch.num_scheduled_tokens), batch.total_num_scheduled_tokens

    def compute(self, batch: Any) -> ModelRunnerOutput:
        """What the second model runner returns: decodes first, then chunks, the shortest first; no token after a chunk
        that is not the last."""
        self._num_preemptions += len(batch.preempted_req_ids or ())
        for name in batch.finished_req_ids:
            self._num_prompt.pop(name, None)
        known, computed = {}, {}
        for new in batch.scheduled_new_reqs:
            self._num_prompt[new.req_id] = len(new.prompt_token_ids)
            known[new.req_id] = len(new.prefill_token_ids or new.prompt_token_ids)
            computed[new.req_id] = new.num_computed_tokens
        cached = batch.scheduled_cached_reqs
        for name, done, outputs in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
        ):
            known[name], computed[name] = self._num_prompt[name] + outputs, done
        counts = batch.num_scheduled_tokens
        names = sorted(counts, key=counts.__getitem__)
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[[] if computed[name] + counts[name] < known[name] else [TOKEN] for name in names],
            logprobs=_logprobs(len(names), self._features["logprobs"]) if self._features else None,
        )

    def update(self, batch: Any, result: ModelRunnerOutput) -> dict[int, Any]:
        self._in_flight.append((batch, result))
        if len(self._in_flight) <= self._num_overlapping:
            return {}
        outputs: dict[int, Any] = self._scheduler.update_from_output(*self._in_flight.popleft())
        return outputs

    def num_ended(self, outcome: dict[int, Any]) -> int:
        return sum(output.finish_reason is not None for client in outcome.values() for output in client.outputs)

    def end(self, request: Request) -> None:
        self._scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)

    def forget_cached(self) -> None:
        assert self._scheduler.reset_prefix_cache()

    @property
    def num_preemptions(self) -> int:
        return self._num_preemptions

    def _sampling(self, max_tokens: int) -> SamplingParams:
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **self._features)
        sampling.update_from_generation_config({}, EOS)
        return sampling


def _logprobs(rows: int, num_logprobs: int) -> LogprobsLists:
    width = num_logprobs + 1
    ids = np.full((rows, width), TOKEN, dtype=np.int32)
    return LogprobsLists(ids, np.full((rows, width), -1.0, dtype=np.float32), np.ones(rows, dtype=np.int32))


def _model() -> str:
    """A folder with the configuration of a model; its weights are never looked for."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 131_072,
        "vocab_size": 32_000,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "torch_dtype": "float16",
    }
    Path(_folder.name, "config.json").write_text(json.dumps(config))
    return _folder.name
