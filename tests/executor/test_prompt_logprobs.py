"""Log-probabilities of prompts, compared with the logits of transformers' own forward."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from headway.accuracy import tiny_models
from headway.executor import prompt_logprobs
from headway.model_files import auto_class
from headway.sampling import SamplingParams
from headway.scheduler.batch import PromptLogprobs, StepResult
from tests.executor.driver import Driver, Sequence_

PROMPT = [(7 * i * i + 3 * i + 5) % 254 + 2 for i in range(70)]
OTHER = [(11 * i * i + i + 9) % 254 + 2 for i in range(33)]


def asking(most: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=1000, prompt_logprobs=most)


def own_logprobs(folder: Path, prompt: list[int]) -> torch.Tensor:
    """float32 [T - 1, vocabulary]: what the model says of positions 1 to T - 1."""
    model_class = auto_class(AutoConfig.from_pretrained(folder))
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return model(torch.tensor([prompt])).logits[0, :-1].log_softmax(dim=1)


def steps(driver: Driver, work: list[tuple[Sequence_, list[int]]]) -> list[StepResult]:
    """Compute chunks of these sizes, side by side."""
    results = []
    while any(sizes for _, sizes in work):
        results.append(driver.step([(sequence, sizes.pop(0)) for sequence, sizes in work if sizes]))
        assert results[-1].error is None, results[-1].error
    return results


def runs(results: list[StepResult], row: int = 0) -> list[PromptLogprobs]:
    """The parts of one row."""
    parts = [result.prompt_logprobs for result in results if result.prompt_logprobs is not None]
    return [part.keep(part.rows == row, np.zeros(1, np.int32)) for part in parts if (part.rows == row).any()]


def check(parts: list[PromptLogprobs], prompt: list[int], expected: torch.Tensor, most: int, first: int = 1) -> None:
    positions = [start + i for part in parts for start, count in zip(part.starts, part.counts) for i in range(count)]
    assert positions == list(range(first, len(prompt)))
    expected = expected[first - 1 :]
    targets = torch.tensor(prompt[first:])[:, None]
    chosen = expected.gather(1, targets)
    assert np.allclose(np.concatenate([part.logprobs for part in parts]), chosen[:, 0], atol=1e-5)
    assert np.concatenate([part.ranks for part in parts]).tolist() == ((expected > chosen).sum(1) + 1).tolist()
    top = np.concatenate([part.top[:, :most] for part in parts])
    assert np.allclose(top, expected.topk(most).values, atol=1e-5)
    ids = torch.from_numpy(np.concatenate([part.top_ids[:, :most] for part in parts]).astype(np.int64))
    assert np.allclose(expected.gather(1, ids), top, atol=1e-5)


@pytest.mark.parametrize("name", tiny_models.SUPPORTED)
def test_they_are_the_models_own_whatever_the_chunks(name, make_executor, model_folder):
    executor = make_executor(name)
    driver = Driver(executor, executor.num_blocks)
    assert executor._model.head is not None
    one, other = driver.sequence(3, PROMPT, asking(5)), driver.sequence(0, OTHER, asking(0))
    results = steps(driver, [(one, [1, 2, 20, 16, 31]), (other, [20, 13])])
    check(runs(results, 0), PROMPT, own_logprobs(model_folder(name), PROMPT), 5)
    check(runs(results, 1), OTHER, own_logprobs(model_folder(name), OTHER), 0)


def test_they_are_computed_in_bounded_pieces(make_executor, model_folder, monkeypatch):
    monkeypatch.setattr(prompt_logprobs, "PIECE_BYTES", 4 * tiny_models.VOCAB_SIZE * 8)
    executor = make_executor("gemma2")
    driver = Driver(executor, executor.num_blocks)
    sizes = []
    head = executor._model.head
    of_head = head.logits
    monkeypatch.setattr(head, "logits", lambda said, tokens: sizes.append(len(tokens)) or of_head(said, tokens))
    results = steps(driver, [(driver.sequence(0, PROMPT, asking(2)), [40, 30])])
    check(runs(results), PROMPT, own_logprobs(model_folder("gemma2"), PROMPT), 2)
    assert sizes == [8] * 5 + [8, 8, 8, 5]
    assert executor.prompts.num_pieces == len(sizes)


def test_a_step_without_a_row_that_asks_computes_none(make_executor, monkeypatch):
    executor = make_executor("llama")
    driver = Driver(executor, executor.num_blocks)
    monkeypatch.setattr(executor._model.head, "watch", lambda: pytest.fail("the decoder is watched"))
    silent = driver.sequence(0, PROMPT, SamplingParams(temperature=0, max_tokens=1000, logprobs=3))
    steps(driver, [(silent, [30, 40, 1])])
    assert executor.prompts.num_pieces == 0


def test_decodes_beside_a_chunk_that_asks_get_the_tokens_that_they_get_alone(make_executor, reference):
    executor = make_executor("llama")
    driver = Driver(executor, executor.num_blocks)
    expected = reference("llama")
    decoding = driver.sequence(0, expected.prompts[4])
    driver.run([decoding], 1, release=False)
    results = steps(driver, [(decoding, [1, 1, 1]), (driver.sequence(1, PROMPT, asking(1)), [30, 30, 10])])
    assert decoding.output == expected.outputs[4][:4]
    assert [len(part.logprobs) for part in runs(results, 1)] == [30, 30, 9]
    assert not runs(results, 0)


def test_after_a_preemption_they_go_on_where_they_were(make_executor, model_folder, monkeypatch):
    """The prompt is computed again, with the answer so far; neither is reported again."""
    executor = make_executor("llama")
    driver = Driver(executor, executor.num_blocks)
    sequence = driver.sequence(0, PROMPT, asking(1))
    steps(driver, [(sequence, [40])])
    driver.preempt(sequence, 1)
    launch = executor.launch

    def from_41(batch):
        batch.admissions = tuple(dataclasses.replace(a, prompt_logprobs_from=41) for a in batch.admissions)
        launch(batch)

    monkeypatch.setattr(executor, "launch", from_41)
    results = steps(driver, [(sequence, [30, 25, 15])])
    check(runs(results), PROMPT, own_logprobs(model_folder("llama"), PROMPT), 1, first=41)
    driver.preempt(sequence, 2)
    monkeypatch.setattr(executor, "launch", launch)
    sequence.tokens += [5, 6]
    again = steps(driver, [(sequence, [60, len(sequence.tokens) - 60])])
    assert sum(len(part.logprobs) for part in runs(again)) == len(PROMPT) - 1


@pytest.mark.parametrize("change", [{"head": None}, {"head": None, "takes_logits_to_keep": False}])
def test_a_model_without_a_head_of_its_own_has_all_its_logits_computed(change, make_executor, model_folder):
    executor = make_executor("gpt2")
    executor._model = dataclasses.replace(executor._model, **change)
    driver = Driver(executor, executor.num_blocks)
    results = steps(driver, [(driver.sequence(0, PROMPT, asking(3)), [50, 20])])
    check(runs(results), PROMPT, own_logprobs(model_folder("gpt2"), PROMPT), 3)


def test_on_the_way_of_cuda_too(as_on_cuda, make_executor, model_folder):
    executor = make_executor("llama")
    driver = Driver(executor, executor.num_blocks)
    results = steps(driver, [(driver.sequence(0, PROMPT, asking(3)), [50, 20, 1, 1])])
    check(runs(results), PROMPT, own_logprobs(model_folder("llama"), PROMPT), 3)
