"""Models that are cut over two ranks or three."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
)

from headway import tiny_random
from headway.config import EngineConfig
from headway.executor.ranks.leader import Leader
from headway.model_files import ModelFiles
from tests.executor.ranks.odd_rank import ODDITY

NUM_OUTPUT = 16


def _llama(**fields: Any) -> PretrainedConfig:
    return LlamaConfig(**_COMMON | {"num_key_value_heads": 2} | fields)


_COMMON: dict[str, Any] = tiny_random.common(256, 256, bos_token_id=0, eos_token_id=1) | {"num_hidden_layers": 2}
_CONFIGS: Mapping[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: _llama(attention_bias=True, mlp_bias=True, vocab_size=257),
    "llama, tied, odd vocabulary": lambda: _llama(tie_word_embeddings=True, vocab_size=257),
    "llama for three": lambda: _llama(num_attention_heads=6, num_key_value_heads=3, hidden_size=48),
    "llama, one KV head": lambda: _llama(num_key_value_heads=1),
    "llama, narrow": lambda: _llama(intermediate_size=95),
    "qwen3": lambda: Qwen3Config(**_COMMON, num_key_value_heads=2, head_dim=24),
    "gemma2": lambda: Gemma2Config(
        **_COMMON | {"tie_word_embeddings": True},
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=24,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=10.0,
    ),
    "phi3": lambda: Phi3Config(**_COMMON, num_key_value_heads=1),
    "mixtral": lambda: MixtralConfig(**_COMMON, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2),
    "gpt2": lambda: GPT2Config(vocab_size=256, n_positions=256, n_embd=64, n_layer=2, n_head=4, eos_token_id=1),
}


@pytest.fixture(scope="session")
def cut_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of `_CONFIGS`. Its tokenizer is not needed."""
    root = tmp_path_factory.mktemp("cut")

    def folder(name: str) -> Path:
        path = root / name.replace(" ", "-").replace(",", "")
        if not path.exists():
            tiny_random.save(tiny_random.random_model(AutoModelForCausalLM, _CONFIGS[name](), seed=0), path)
        return path

    return folder


@pytest.fixture(scope="session")
def settings(cut_folder: Callable[[str], Path]) -> Callable[..., EngineConfig]:
    def make(name: str, size: int = 2, **fields: Any) -> EngineConfig:
        options = {"device": "cpu", "max_num_seqs": 8, "num_blocks": 100, **fields}
        return EngineConfig(model=str(cut_folder(name)), tensor_parallel_size=size, **options)

    return make


@pytest.fixture
def lead(settings: Callable[..., EngineConfig], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Leader]]:
    """Make rank 0 of a model, and with it the other ranks; they are ended after the test. oddity: of the other ranks,
    see `odd_rank`."""
    made: list[Leader] = []

    def make(name: str = "llama", size: int = 2, oddity: str | None = None, **fields: Any) -> Leader:
        if oddity is not None:
            monkeypatch.setenv(ODDITY, oddity)
            monkeypatch.setattr("headway.executor.ranks.rank_group._MODULE", "tests.executor.ranks.odd_rank")
            root = str(Path(__file__).parents[3])  # a rank imports nothing from its working folder
            monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))))
            monkeypatch.syspath_prepend(root)
        config = settings(name, size, **fields)
        made.append(Leader(ModelFiles.resolve(config), config))
        return made[-1]

    yield make
    for leader in made:
        leader.shutdown()
