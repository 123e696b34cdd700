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
from types import SimpleNamespace

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
from headway.adapters.vllm.requests import LiveRequest  # noqa: E402


class Shown(HeadwayScheduler):
    """HeadwayScheduler, with the attributes of vLLM's scheduler that its tests read."""

    def __init__(self, *, vllm_config, kv_cache_config, block_size, **arguments) -> None:
        # The engine sees to this before it makes a scheduler: some tests do not.
        room = (kv_cache_config.num_blocks - 1) * block_size
        vllm_config.model_config.max_model_len = min(vllm_config.model_config.max_model_len, room)
        super().__init__(vllm_config=vllm_config, kv_cache_config=kv_cache_config, block_size=block_size, **arguments)
        self._seated: list[LiveRequest] = []
        self.vllm_config = vllm_config
        self.kv_cache_config = kv_cache_config
        self.block_size = block_size
        self.scheduler_config = vllm_config.scheduler_config
        self.cache_config = vllm_config.cache_config
        self.structured_output_manager = arguments["structured_output_manager"]
        self.max_num_running_reqs = self.scheduler_config.max_num_seqs
        self.max_num_scheduled_tokens = self._core.config.max_num_batched_tokens
        self.max_model_len = self._core.config.max_model_len

    def update_from_output(self, scheduler_output, model_runner_output):
        """vLLM's own appends each token to its request, which its tests read."""
        requests = self.requests
        by_client = super().update_from_output(scheduler_output, model_runner_output)
        for outputs in by_client.values():
            for output in outputs.outputs:
                request = requests.get(output.request_id)
                if request is not None and not self._keeps_tokens(request):
                    request.append_output_token_ids(output.new_token_ids)
        return by_client

    @staticmethod
    def _keeps_tokens(request) -> bool:
        """Whether ours has appended them itself."""
        return request.use_structured_output or request.sampling_params.repetition_detection is not None

    @property
    def requests(self):
        """Every request that has not ended, by id."""
        return {live.name: live.request for live in self._requests}

    def schedule(self, *arguments, **options):
        output = super().schedule(*arguments, **options)
        seated = [live for live in self._requests if live.slot >= 0]
        stayed = [live for live in self._seated if live in seated]
        names = list(output.num_scheduled_tokens)
        came = sorted((live for live in seated if live not in stayed), key=lambda live: names.index(live.name))
        self._seated = stayed + came
        return output

    @property
    def running(self):
        """The requests that have a slot, in the order of their admission."""
        return [live.request for live in self._seated if live in set(self._requests) and live.slot >= 0]

    @property
    def waiting(self):
        """The requests that have no slot, in the order of their priorities."""
        waiting = [live.request for live in self._requests if live.slot < 0]
        return sorted(waiting, key=lambda request: request.priority) if self._has_priorities else waiting

    @property
    def deferred_waiting(self):
        """The requests that wait for something else first."""
        return [live.request for live in self._requests if live.waits_for_grammar]

    @property
    def kv_cache_manager(self):
        """The numbers of its pool of blocks, which includes block 0; and the requests that hold blocks."""
        snapshot = self._core.snapshot()
        free = snapshot.num_blocks_free + snapshot.num_blocks_evictable
        holders = {request.request_id: () for request in self.running}
        return SimpleNamespace(
            block_pool=SimpleNamespace(
                num_gpu_blocks=self._core.config.num_blocks,
                get_num_free_blocks=lambda: free,
                free_block_queue=SimpleNamespace(num_free_blocks=free),
                blocks=[],
            ),
            coordinator=SimpleNamespace(
                single_type_managers=[SimpleNamespace(req_to_blocks=holders, num_cached_block=holders)]
            ),
        )

    encoder_cache_manager = SimpleNamespace(freed=(), cached=())

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
