"""FastDeploy's EngineService for a model that does not exist, on a CPU."""

from __future__ import annotations

import os

os.environ.update(
    ENABLE_V1_KVCACHE_SCHEDULER="1",
    FD_USE_GET_SAVE_OUTPUT_V1="1",
    FD_ENABLE_INTERNAL_ADAPTER="0",
)

import time
from typing import Any
from unittest.mock import patch

from fastdeploy.engine import common_engine
from fastdeploy.engine.args_utils import EngineArgs
from fastdeploy.engine.request import Request, RequestMetrics
from fastdeploy.engine.sampling_params import SamplingParams
from headway.adapters.fastdeploy.__main__ import put_in_place

END = 1
BLOCK_SIZE = 16
MAX_MODEL_LEN = 256
MODEL = {
    "architectures": ["StubForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "vocab_size": 1000,
}


def make_config(plan: Any, num_blocks: int | None = None, **options: Any) -> Any:
    """FastDeploy's configuration."""

    def post_init(self: Any) -> None:
        self.is_unified_ckpt, self.runner_type, self.convert_type, self.supported_tasks = False, "generate", "auto", []
        if not hasattr(self, "enable_mm"):
            self.enable_mm = False

    arguments = EngineArgs(
        model="/nowhere/ERNIE",
        max_model_len=MAX_MODEL_LEN,
        tensor_parallel_size=1,
        max_num_seqs=plan.num_slots,
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=MAX_MODEL_LEN,
        num_gpu_blocks_override=num_blocks or plan.num_blocks,
        **{"engine_worker_queue_port": 46778, "cache_queue_port": 46779, **options},
    )
    with (
        patch("fastdeploy.config.PretrainedConfig.get_config_dict", return_value=(MODEL, None)),
        patch("fastdeploy.config.ModelConfig._post_init", post_init),
    ):
        config = arguments.create_engine_config()
    # What FastDeploy's options do not allow on a CPU, or for a model so small.
    config.cache_config.enable_prefix_caching = plan.prefix_caching
    config.scheduler_config.max_num_batched_tokens = plan.budget
    os.environ["ENABLE_V1_KVCACHE_SCHEDULER"] = "1"  # FastDeploy has set it to 0, as there is no GPU
    common_engine.envs.ENABLE_V1_KVCACHE_SCHEDULER = 1
    return config


def make_engine(manager: str, plan: Any, **options: Any) -> Any:
    """An EngineService that was not started. manager: "v1" or "headway"."""
    config = make_config(plan, **options)
    if manager == "headway":
        put_in_place()
    return common_engine.EngineService(config, start_queue=True, use_async_llm=True)


def make_request(request_id: str, prompt: list[int], num_outputs: int) -> Request:
    """A request as FastDeploy's front end makes it."""
    now = time.time()
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        prompt_token_ids_len=len(prompt),
        eos_token_ids=[END],
        sampling_params=SamplingParams(max_tokens=num_outputs + 5),
        metrics=RequestMetrics(
            arrival_time=now, scheduler_recv_req_time=now, preprocess_start_time=now, preprocess_end_time=now
        ),
    )
