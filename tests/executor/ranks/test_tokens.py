"""A model that is cut over ranks says, token for token, what it says on one device."""

from __future__ import annotations

import numpy as np
import pytest

from headway.accuracy.reference import generate_greedily
from headway.executor.packed_linear import PackedLinear
from headway.executor.transformers_executor import TransformersExecutor
from headway.model_files import ModelFiles
from headway.sampling import SamplingParams
from tests.executor.driver import Driver
from tests.executor.ranks.conftest import NUM_OUTPUT

MIN_MARGIN = 1e-4  # a smaller lead of a token may be lost to the rounding of sums over ranks
LENGTHS = (1, 15, 40, 64)

CASES = ["llama, tied, odd vocabulary", "qwen3", "gemma2", "phi3", "mixtral"]


def drawn(length: int):
    return lambda rng: [rng.randrange(2, 256) for _ in range(length)]


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_those_of_generate(name, lead, cut_folder):
    expected = generate_greedily(cut_folder(name), [drawn(n) for n in LENGTHS], NUM_OUTPUT, min_margin=MIN_MARGIN)
    leader = lead(name)
    driver = Driver(leader, leader.num_blocks)
    sequences = [driver.sequence(slot, prompt) for slot, prompt in enumerate(expected.prompts)]
    driver.run(sequences, NUM_OUTPUT, budget=17)
    assert [s.output for s in sequences] == expected.outputs


def ways(driver: Driver) -> list[object]:
    """What comes of requests of all kinds, with two steps on the way."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 256, size=length).tolist() for length in (9, 33, 20, 12)]
    kinds = [
        SamplingParams(temperature=1.0, seed=5, max_tokens=1000),
        SamplingParams(temperature=0.7, top_p=0.8, max_tokens=1000),
        SamplingParams(temperature=0, repetition_penalty=1.3, max_tokens=1000, logprobs=2),
        SamplingParams(temperature=0, max_tokens=1000, prompt_logprobs=3),
    ]
    sequences = [driver.sequence(slot, p, kind) for slot, (p, kind) in enumerate(zip(prompts, kinds, strict=True))]
    first = driver.step([(s, len(s.tokens)) for s in sequences])
    assert first.error is None and first.prompt_logprobs is not None
    for _ in range(6):  # the second of two steps is launched before the first is answered
        for _ in range(2):
            sampling = driver.launch([(s, 1) for s in sequences])
            for sequence in sampling:
                sequence.tokens.append(-1)  # known to the device alone
        for back in (2, 1):
            result = driver.results.get(timeout=60)
            assert result.error is None
            for sequence, token in zip(sequences, result.tokens.tolist(), strict=True):
                sequence.tokens[-back] = token
    driver.preempt(sequences[0], slot=7)
    driver.run([sequences[0]], 20)
    judged = first.prompt_logprobs
    return [[s.output for s in sequences], judged.top_ids.tolist(), judged.logprobs.round(3).tolist()]


def test_seeds_penalties_and_logprobs_are_those_of_one_device(lead, settings, caplog):
    config = settings("llama", size=1)
    alone = TransformersExecutor(ModelFiles.resolve(config), config)
    expected = ways(Driver(alone, alone.num_blocks))
    whole = sum(weight.nbytes for weight in alone._model.module.state_dict().values() if hasattr(weight, "nbytes"))
    alone.shutdown()
    with caplog.at_level("INFO", logger="headway"):
        leader = lead("llama")
    assert "rank 0:" in caplog.text and "rank 1:" in caplog.text, "the memory of each rank is told"
    found = ways(Driver(leader, leader.num_blocks))
    assert found[:2] == expected[:2]
    assert np.allclose(found[2], expected[2], atol=2e-3)
    assert leader.placement.device == "2 x cpu"
    assert not any(isinstance(module, PackedLinear) for module in leader._model.module.modules())
    total = sum(weight.numel() * 4 for weight in leader._model.module.parameters())  # of a cut weight: the whole
    assert leader.weight_bytes < 0.7 * total, whole
