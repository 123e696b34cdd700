"""Tiny models, made once per session, and what `model.generate` says about prompts of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from headway.bench import tiny_models
from headway.config import EngineConfig
from headway.executor.model_files import ModelFiles
from headway.executor.transformers import TransformersExecutor

LENGTHS = (1, 3, 16, 17, 31, 40, 63, 64, 75, 90)
NUM_OUTPUT = 20
MIN_MARGIN = 1e-5  # a smaller lead of the best token is decided by rounding: such prompts prove nothing


@dataclass(frozen=True)
class Reference:
    """Prompts and their greedy continuations, by `model.generate` in float32, one at a time."""

    prompts: list[list[int]]
    outputs: list[list[int]]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        path = root / name
        return path if path.exists() else tiny_models.build(name, path)

    return folder


@pytest.fixture(scope="session")
def reference(model_folder: Callable[[str], Path]) -> Callable[[str], Reference]:
    made: dict[str, Reference] = {}

    def of(name: str) -> Reference:
        if name not in made:
            made[name] = _generate(model_folder(name))
        return made[name]

    return of


@pytest.fixture
def make_executor(model_folder: Callable[[str], Path]) -> Iterator[Callable[..., TransformersExecutor]]:
    """Make executors for tiny models by name; they are shut down after the test."""
    made: list[TransformersExecutor] = []

    def make(name: str = "llama", **fields) -> TransformersExecutor:
        settings = {"device": "cpu", "max_num_seqs": 12, "num_blocks": 120, **fields}
        config = EngineConfig(model=str(model_folder(name)), **settings)
        made.append(TransformersExecutor(ModelFiles.resolve(config), config))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown()


def _generate(folder: Path) -> Reference:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    rng = random.Random(0)
    prompts, outputs = [], []
    for length in LENGTHS:
        while True:
            prompt = [rng.randrange(2, tiny_models.VOCAB_SIZE) for _ in range(length)]
            answer = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, length),
                max_new_tokens=NUM_OUTPUT,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            top = torch.cat(answer.logits).topk(2).values
            if float((top[:, 0] - top[:, 1]).min()) > MIN_MARGIN:
                break
        prompts.append(prompt)
        outputs.append(answer.sequences[0, length:].tolist())
    return Reference(prompts, outputs)
