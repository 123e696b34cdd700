"""What a packed, paged, chunked run of a model says is what `model.generate` says, token for token."""

import pytest

from headway.accuracy import tiny_models
from tests.executor.conftest import NUM_OUTPUT
from tests.executor.driver import Driver


@pytest.mark.parametrize("budget", [17, 2048])
@pytest.mark.parametrize("name", tiny_models.SUPPORTED)
def test_greedy_tokens_are_those_of_generate(name, budget, make_executor, reference):
    executor = make_executor(name)
    driver = Driver(executor, executor.num_blocks)
    expected = reference(name)
    sequences = [driver.sequence(slot, prompt) for slot, prompt in enumerate(expected.prompts)]
    driver.run(sequences, NUM_OUTPUT, budget=budget)
    assert [s.output for s in sequences] == expected.outputs


def test_outputs_depend_on_the_prompt_and_on_far_tokens(reference):
    """Else the equality above would prove little."""
    for name in tiny_models.SUPPORTED:
        outputs = reference(name).outputs
        assert len({tuple(output) for output in outputs}) == len(outputs), name
        assert sum(len(set(output)) for output in outputs) > 4 * len(outputs), name
