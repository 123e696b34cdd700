"""Overlapped steps: the next one is launched while one computes, and every token is what it is without.

Requests that are aborted, stop by a token or are preempted do so while a step that computes for them is on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headway.accuracy.reference import Reference
from headway.request import FinishReason
from headway.thinking_tokens import ThinkingTokens
from tests.executor import served_jobs
from tests.executor.conftest import LENGTHS, NUM_OUTPUT
from tests.executor.served_jobs import ABORT_AFTER, GREEDY, Job, Served
from tests.managers.driving import ACCESSES

DRAWN = replace(GREEDY, temperature=0.9, top_p=0.95, seed=1234)
MAX_MODEL_LEN = 112


def serve(
    folder: Path, scheduler: str, jobs: Sequence[Job], *, async_scheduling: bool, num_requests_that_fit: int
) -> Served:
    return served_jobs.serve(
        jobs,
        fits=num_requests_that_fit,
        max_model_len=MAX_MODEL_LEN,
        model=str(folder),
        scheduler=scheduler,
        max_num_seqs=6,
        max_num_batched_tokens=40,
        async_scheduling=async_scheduling,
    )


@pytest.fixture
def llama(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("llama")


@pytest.fixture(autouse=True, params=["on a CPU", "as on CUDA"])
def _as_on(request: pytest.FixtureRequest) -> None:
    if request.param == "as on CUDA":
        request.getfixturevalue("as_on_cuda")


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("scheduler", ACCESSES)
def test_aborts_stop_tokens_and_preemptions_in_flight_change_no_token(
    scheduler: str, async_scheduling: bool, llama: Path, reference: Callable[[str], Reference]
) -> None:
    expected = reference("llama")
    jobs, answers, why = [], [], []
    for i, (prompt, output) in enumerate(zip(expected.prompts * 2, expected.outputs * 2, strict=True)):
        job, answer, reason = Job(prompt), output, FinishReason.LENGTH
        if i % 3 == 1:
            stop = output[i % NUM_OUTPUT]
            job = Job(prompt, replace(GREEDY, stop_token_ids=(stop,)))
            answer, reason = output[: output.index(stop) + 1], FinishReason.STOP
        elif i % 3 == 2:
            job, answer, reason = Job(prompt, aborted=True), output[:ABORT_AFTER], FinishReason.ABORT
        jobs.append(job)
        answers.append(answer)
        why.append(reason)
    served = serve(llama, scheduler, jobs, async_scheduling=async_scheduling, num_requests_that_fit=2)
    assert served.most_in_flight == (2 if async_scheduling else 1)
    assert served.preemptions > 0
    for i, (got, answer) in enumerate(zip(served.answers, answers, strict=True)):
        if jobs[i].aborted:  # the abort waits its turn behind results
            assert got[:ABORT_AFTER] == answer and got == expected.outputs[i % len(LENGTHS)][: len(got)]
        else:
            assert got == answer
        assert served.why[i] is why[i] or (jobs[i].aborted and len(got) == NUM_OUTPUT)


def test_sampling_that_depends_on_the_tokens_before_is_the_same(
    llama: Path, reference: Callable[[str], Reference]
) -> None:
    """What goes by tokens that the writer has not seen yet (penalties, bad sequences, thinking) or by position."""
    prompts = reference("llama").prompts
    ways = (
        DRAWN,
        replace(GREEDY, repetition_penalty=1.7),
        replace(DRAWN, presence_penalty=1.1, frequency_penalty=0.6, seed=5),
        replace(GREEDY, logprobs=3),
        replace(DRAWN, min_tokens=9, logit_bias={7: 8.0}, stop_token_ids=(7,)),
        replace(DRAWN, allowed_token_ids=(3, 4, 5), bad_token_sequences=((3, 4), (4, 3, 3), (5, 5))),
        replace(DRAWN, thinking=ThinkingTokens(end=(9, 8)), thinking_token_budget=5, seed=3),
    )
    jobs = [Job(prompt, ways[(i + half) % len(ways)]) for half in (0, 2) for i, prompt in enumerate(prompts)]
    plain, tight = (
        serve(llama, "v2", jobs, async_scheduling=False, num_requests_that_fit=fits) for fits in (len(jobs), 2)
    )
    assert plain.preemptions == 0 and tight.preemptions > 0
    for fits in (len(jobs), 2):
        overlapped = serve(llama, "v2", jobs, async_scheduling=True, num_requests_that_fit=fits)
        assert overlapped.most_in_flight == 2 and (overlapped.preemptions > 0) == (fits == 2)
        assert overlapped.answers == plain.answers == tight.answers
        assert overlapped.why == plain.why
        assert overlapped.logprobs.keys() == plain.logprobs.keys() != set()
        for uid, rows in plain.logprobs.items():
            for one, other in zip(rows, overlapped.logprobs[uid], strict=True):
                assert (one[0], one[2]) == (other[0], other[2])
                assert one[1] == pytest.approx(other[1], abs=1e-4)
    assert len({tuple(answer) for answer in plain.answers}) > len(np.unique(LENGTHS))
