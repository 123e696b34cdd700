"""The KV cache of a P or D engine on a CPU lies in memory that other engines can read, and computes the same."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from headway.accuracy.reference import Reference
from headway.config import Role
from headway.executor.transformers_executor import TransformersExecutor
from headway.transfer.memory import PeerMemory
from tests.executor.driver import Driver

Make = Callable[..., TransformersExecutor]


def test_a_mixed_engine_shares_nothing(make_executor: Make) -> None:
    assert make_executor().kv_memory() is None


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_the_tensors_of_a_cache_are_the_parts_of_its_memory(make_executor: Make, name: str, role: Role) -> None:
    executor = make_executor(name, role=role)
    memory = executor.kv_memory()
    assert memory is not None and executor._model is not None and executor._model.attention.kv is not None
    kv = executor._model.attention.kv
    peer = PeerMemory(memory.handle(), memory.layout)
    tensors = [tensor for layer in sorted(kv.layers) for tensor in kv.layers[layer]]
    assert len(tensors) == len(memory.parts) == len(memory.layout.part_bytes)
    for index, (tensor, part) in enumerate(zip(tensors, peer.parts, strict=True)):
        tensor[5].fill_(float(index + 1))
        expected = torch.full_like(tensor[5], float(index + 1))
        assert np.array_equal(part[5], expected.flatten().view(torch.uint8).numpy())
        assert not part[4].any() and not part[6].any()


def test_it_computes_what_a_mixed_engine_computes(make_executor: Make, reference: Callable[[str], Reference]) -> None:
    expected = reference("llama")
    executor = make_executor("llama", role=Role.DECODE)
    driver = Driver(executor, executor.num_blocks)
    sequences = [driver.sequence(slot, prompt) for slot, prompt in enumerate(expected.prompts[:4])]
    driver.run(sequences, 8)
    assert [sequence.output for sequence in sequences] == [output[:8] for output in expected.outputs[:4]]


def test_memory_is_given_back_at_the_end(make_executor: Make) -> None:
    executor = make_executor(role=Role.PREFILL)
    memory = executor.kv_memory()
    assert memory is not None
    handle = memory.handle()
    executor.shutdown()
    with pytest.raises(OSError):
        PeerMemory(handle, memory.layout)
