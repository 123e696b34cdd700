"""Allowed ids, bad sequences and a budget of thinking: against the rules written out, one row at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headway.executor.sampling_state import SamplingState
from headway.executor.token_rules import TokenRules, thought
from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler.batch import Admission
from headway.thinking_tokens import ThinkingTokens

CPU = torch.device("cpu")
VOCAB = 8
GREEDY = SamplingParams(temperature=0, max_tokens=100)
TAGS = ThinkingTokens(start=(6,), end=(7,))
LONG_TAGS = ThinkingTokens(start=(6, 1), end=(7, 7, 2))
ALWAYS = ThinkingTokens(end=(7, 1))


@dataclass
class Answer:
    """A request in a slot, and its tokens so far."""

    sampling: SamplingParams
    prompt: Sequence[int] = (1, 2, 3)
    slot: int = 0
    output: list[int] = field(default_factory=list)


class Served:
    """Answers that share a sampling state."""

    def __init__(self, *answers: Answer, num_slots: int = 16) -> None:
        self.state = SamplingState(num_slots, VOCAB, 0, CPU)
        self.answers = answers
        for slot, answer in enumerate(answers):
            self.admit(answer, slot)

    def admit(self, answer: Answer, slot: int) -> None:
        answer.slot = slot
        request = Request(
            uid=slot, request_id=str(slot), prompt=np.array(answer.prompt, np.int32), sampling=answer.sampling,
            max_tokens=100,
        )  # fmt: skip
        tokens = np.array([*answer.prompt, *answer.output], np.int32)
        self.state.admit(Admission(slot, request, tokens, 0))

    def step(self, logits: torch.Tensor) -> None:
        """Draw the next token of every answer. logits: [answers, V]"""
        slots = np.array([answer.slot for answer in self.answers], np.int32)
        positions = np.array([len(answer.prompt) + len(answer.output) for answer in self.answers], np.int32)
        tokens = self.state.sample(logits.clone(), slots, positions).tokens.tolist()
        for answer, token in zip(self.answers, tokens, strict=True):
            answer.output.append(token)


def one(sampling: SamplingParams, wishes: Sequence[int], prompt: Sequence[int] = (1, 2, 3)) -> list[int]:
    """The answer of a model that wishes for these tokens, and for 0 where one is forbidden."""
    answer = Answer(replace(GREEDY, **{name: getattr(sampling, name) for name in RULES}), prompt)
    served = Served(answer)
    for wish in wishes:
        logits = torch.zeros(1, VOCAB)
        logits[0, 0], logits[0, wish] = 1.0, 2.0
        served.step(logits)
    return answer.output


RULES = ("bad_token_sequences", "allowed_token_ids", "thinking_token_budget", "thinking")


def by_definition(answer: Answer, row: torch.Tensor) -> int:
    sampling, tokens = answer.sampling, [*answer.prompt, *answer.output]
    thinking, budget = sampling.thinking, sampling.thinking_token_budget
    if thinking is not None and budget is not None:
        spent = spent_on_thinking(answer, thinking)
        if spent is not None and spent >= budget:
            end = list(thinking.end)
            done = max(k for k in range(len(end)) if k == 0 or answer.output[-k:] == end[:k])
            return end[done]
    left = set(range(VOCAB)) if sampling.allowed_token_ids is None else set(sampling.allowed_token_ids)
    bad = {
        sequence[-1]
        for sequence in sampling.bad_token_sequences
        if len(sequence) == 1 or answer.output[-(len(sequence) - 1) :] == list(sequence[:-1])
    }
    assert tokens
    return max((left - bad) or left, key=lambda token: float(row[token]))


def spent_on_thinking(answer: Answer, thinking: ThinkingTokens) -> int | None:
    """Token by token: how long the answer has been thinking; None: it does not think."""
    start, end = list(thinking.start), list(thinking.end)
    seen: list[int] = []
    spent = None if start else 0
    for at, token in enumerate([*answer.prompt, *answer.output]):
        if not start and at < len(answer.prompt):
            continue
        seen.append(token)
        if spent is not None:
            spent += 1
        if seen[-len(end) :] == end:
            spent = None
        if spent is None and start and seen[-len(start) :] == start:
            spent = 0
    return spent


def random_sampling(rng: random.Random) -> SamplingParams:
    sampling = GREEDY
    if rng.random() < 0.6:
        sequences = {tuple(rng.choices(range(VOCAB), k=rng.randint(1, 3))) for _ in range(rng.randint(1, 6))}
        sampling = replace(sampling, bad_token_sequences=tuple(sequences))
    if rng.random() < 0.4:
        banned = {sequence[0] for sequence in sampling.bad_token_sequences if len(sequence) == 1}
        allowed = [token for token in range(VOCAB) if token not in banned]
        if allowed:
            sampling = replace(sampling, allowed_token_ids=tuple(rng.sample(allowed, rng.randint(1, len(allowed)))))
    if rng.random() < 0.5:
        sampling = replace(
            sampling, thinking=rng.choice([TAGS, LONG_TAGS, ALWAYS]), thinking_token_budget=rng.randint(0, 6)
        )
    return sampling


@pytest.mark.parametrize("seed", range(12))
def test_every_token_is_what_the_rules_written_out_leave_also_after_preemptions(seed: int) -> None:
    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    answers = [Answer(random_sampling(rng), rng.choices(range(VOCAB), k=rng.randint(1, 6))) for _ in range(8)]
    served = Served(*answers)
    for _ in range(30):
        if rng.random() < 0.3:  # preempted: its next slot had another owner
            answer = rng.choice(answers)
            free = rng.choice([slot for slot in range(16) if slot not in {other.slot for other in answers}])
            served.admit(answer, free)
        logits = torch.randn(len(answers), VOCAB, generator=noise)
        expected = [by_definition(answer, row) for answer, row in zip(answers, logits, strict=True)]
        served.step(logits)
        assert [answer.output[-1] for answer in answers] == expected


def test_a_sequence_is_cut_before_its_last_token_and_only_where_all_of_it_would_stand() -> None:
    sampling = replace(GREEDY, bad_token_sequences=((4, 5, 6),))
    assert one(sampling, [4, 5, 6]) == [4, 5, 0]
    assert one(sampling, [5, 6, 4, 6]) == [5, 6, 4, 6]
    assert one(sampling, [5, 6], prompt=(1, 4)) == [5, 6], "the prompt is no part of the answer"


def test_where_bad_sequences_leave_nothing_they_give_way() -> None:
    sampling = replace(GREEDY, allowed_token_ids=(5,), bad_token_sequences=((5, 5),))
    assert one(sampling, [4, 4, 4]) == [5, 5, 5]


def test_where_another_rule_has_left_no_allowed_token_what_that_rule_leaves_is_drawn() -> None:
    answer = Answer(replace(GREEDY, allowed_token_ids=(5,)))
    logits = torch.zeros(1, VOCAB)
    logits[0, 5] = float("-inf")  # as a grammar does
    logits[0, 3] = 1.0
    Served(answer).step(logits)
    assert answer.output == [3]


def test_only_allowed_tokens_are_drawn_also_at_a_high_temperature() -> None:
    answer = Answer(SamplingParams(temperature=50.0, seed=3, allowed_token_ids=(2, 5), max_tokens=100))
    served = Served(answer)
    for _ in range(40):
        served.step(torch.randn(1, VOCAB))
    assert set(answer.output) == {2, 5}


@pytest.mark.parametrize(
    ("thinking", "budget", "prompt", "wishes", "answer"),
    [
        (TAGS, 2, (1,), [6, 3, 4, 5, 5], [6, 3, 4, 7, 5]),
        (TAGS, 2, (1, 6), [3, 4, 5, 5], [3, 4, 7, 5]),  # the prompt opens the thinking
        (TAGS, 0, (1, 6), [3, 4], [7, 4]),
        (TAGS, 2, (1, 6, 7), [3, 4, 5, 5], [3, 4, 5, 5]),  # and closes it
        (TAGS, 2, (1, 6), [3, 7, 5, 5], [3, 7, 5, 5]),  # the model ends in time
        (TAGS, 1, (1, 6), [3, 3, 6, 3, 3], [3, 7, 6, 3, 7]),  # it thinks again
        (LONG_TAGS, 2, (1, 6, 1), [3, 7, 4, 4, 4], [3, 7, 7, 2, 4]),  # it has begun to end
        (LONG_TAGS, 2, (1, 6, 1), [3, 3, 4, 4, 4, 5], [3, 3, 7, 7, 2, 5]),
        (ALWAYS, 2, (1,), [3, 3, 3, 3, 3], [3, 3, 7, 1, 3]),
        (TAGS, None, (1, 6), [3] * 6, [3] * 6),
    ],
)
def test_thinking_ends_when_its_budget_is_spent(
    thinking: ThinkingTokens, budget: int | None, prompt: tuple[int, ...], wishes: list[int], answer: list[int]
) -> None:
    sampling = replace(GREEDY, thinking=thinking, thinking_token_budget=budget)
    assert one(sampling, wishes, prompt) == answer


def test_tokens_of_thinking_are_counted_from_the_first_mark_after_the_last_end() -> None:
    tokens = np.array([6, 3, 7, 6, 3, 6, 3], np.int32)
    assert thought(tokens, 1, TAGS) == 3
    assert thought(tokens[:3], 1, TAGS) == -1
    assert thought(np.array([7, 1, 3], np.int32), 2, ALWAYS) == 1, "an end in the prompt ended another answer"


class _Counted(TorchDispatchMode):
    """Counts what torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_batch_without_rules_computes_nothing_for_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*others: SamplingParams) -> int:
        answers = [Answer(GREEDY), Answer(replace(GREEDY, temperature=1.0, seed=1)), *map(Answer, others)]
        served = Served(*answers)
        served.answers = tuple(answers[:2])
        with _Counted() as counted:
            served.step(torch.randn(2, VOCAB))
        return counted.count

    ruled = replace(
        GREEDY, bad_token_sequences=((1, 2),), allowed_token_ids=(1, 2, 3), thinking=TAGS, thinking_token_budget=1
    )
    counts = computed(), computed(ruled, ruled)
    monkeypatch.setattr(TokenRules, "edit", lambda *_: None)
    monkeypatch.setattr(TokenRules, "record", lambda *_: None)
    assert counts == (computed(), computed())
