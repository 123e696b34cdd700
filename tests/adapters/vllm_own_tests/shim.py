"""A pytest plugin that runs vLLM's own scheduler tests against HeadwayScheduler. Loaded inside vLLM's environment.

    python -m pytest -p shim tests/v1/core/test_scheduler.py

It puts our class in the place of vLLM's schedulers, sync and async, before the tests import them. The tests look into
the scheduler, where ours has other things in other places: `Shown` shows what can be shown. The models that the tests
name are configurations alone, in a folder that stands in for the hub's cache.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 768,
    "vocab_size": 50272,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "torch_dtype": "float16",
}
MODELS = ("facebook/opt-125m", "facebook/opt-350m")


def _lay_out_models(home: Path) -> None:
    """As the hub's cache lays them out."""
    for name in MODELS:
        model = home / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = model / "snapshots" / "0"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps(OPT))
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text("0")


_home = tempfile.TemporaryDirectory(prefix="headway-models-")
_lay_out_models(Path(_home.name))
os.environ |= {"HF_HOME": _home.name, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_TARGET_DEVICE": "cpu"}

# What follows reads the environment when it is imported.
import vllm.v1.core.sched.async_scheduler  # noqa: E402
import vllm.v1.core.sched.scheduler  # noqa: E402

from headway.adapters.vllm import HeadwayScheduler  # noqa: E402


class Shown(HeadwayScheduler):
    """HeadwayScheduler, with the attributes of vLLM's scheduler that its tests read."""

    def __init__(self, *, vllm_config, **arguments) -> None:
        self.vllm_config = vllm_config
        self.scheduler_config = vllm_config.scheduler_config
        self.cache_config = vllm_config.cache_config
        self.block_size = arguments["block_size"]
        super().__init__(vllm_config=vllm_config, **arguments)
        self.max_num_running_reqs = self._core.config.max_num_seqs
        self.max_num_scheduled_tokens = self._core.config.max_num_batched_tokens
        self.max_model_len = self._core.config.max_model_len

    @property
    def requests(self):
        """Every request that has not ended, by id."""
        return {live.name: live.request for live in self._requests}

    @property
    def running(self):
        """The requests that have a slot."""
        return [live.request for live in self._requests if live.slot >= 0]

    @property
    def waiting(self):
        """The requests that have none."""
        return [live.request for live in self._requests if live.slot < 0]

    @property
    def use_v2_model_runner(self) -> bool:
        return bool(self._outputs._for_v2)

    @use_v2_model_runner.setter
    def use_v2_model_runner(self, chosen: bool) -> None:
        self._outputs._for_v2 = chosen

    @property
    def finished_req_ids(self):
        return self._outputs._finished


vllm.v1.core.sched.scheduler.Scheduler = Shown
vllm.v1.core.sched.async_scheduler.AsyncScheduler = Shown
