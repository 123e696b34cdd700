"""Tiny models, made once per session, and what `model.generate` says about prompts of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from headway.accuracy import tiny_models
from headway.accuracy.reference import Draw, Reference, generate_greedily
from headway.config import EngineConfig
from headway.executor import flashinfer_attention, transformers_executor
from headway.executor.transformers_executor import TransformersExecutor
from headway.model_files import ModelFiles
from tests.executor import fake_flashinfer
from tests.executor.recorded_graphs import RecordedGraphs

LENGTHS = (1, 3, 16, 17, 31, 40, 63, 64, 75, 90)
NUM_OUTPUT = 20


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
            made[name] = generate_greedily(model_folder(name), [_random_prompt(n) for n in LENGTHS], NUM_OUTPUT)
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


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> RecordedGraphs:
    """Executors made from here on take the way of CUDA, on a CPU: a stand-in for FlashInfer is installed and takes what
    a CPU has, graphs are recorded, and results are fetched on a thread of their own. Returns what records graphs."""
    graphs = RecordedGraphs()
    monkeypatch.setitem(sys.modules, "flashinfer", fake_flashinfer)
    monkeypatch.setattr(flashinfer_attention, "DEVICES", ("cpu",))
    monkeypatch.setattr(flashinfer_attention, "DTYPES", (torch.float32, torch.bfloat16))
    monkeypatch.setattr(flashinfer_attention, "HEAD_DIMS", (16, 24))
    monkeypatch.setattr(transformers_executor, "CudaCapture", lambda: graphs)
    monkeypatch.setattr(transformers_executor, "_waits_for", lambda device: True)
    return graphs


def _random_prompt(length: int) -> Draw:
    return lambda rng: [rng.randrange(2, tiny_models.VOCAB_SIZE) for _ in range(length)]
