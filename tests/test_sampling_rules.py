"""Rules about tokens, through the real engine and the embedded model, which does sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from headway import LLM, FinishReason, RequestError, SamplingParams
from headway.outputs import CompletionOutput
from headway.repetition_detection import RepetitionDetectionParams
from headway.structured_outputs import StructuredOutputs
from headway.thinking_tokens import ThinkingTokens

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_num_seqs=4) as llm:
        yield llm


def answers(llm: LLM, **fields: Any) -> list[CompletionOutput]:
    return llm.generate("12+34=", SamplingParams(**{**GREEDY, **fields}), use_tqdm=False)[0].outputs


def ids(llm: LLM, text: str) -> tuple[int, ...]:
    return tuple(llm.tokenizer.encode(text, add_special_tokens=False))


def test_a_bad_word_is_not_written_but_its_beginning_is(llm: LLM) -> None:
    assert answers(llm)[0].text == "46"
    (answer,) = answers(llm, bad_words=["46"])
    assert answer.text.startswith("4") and "46" not in answer.text
    assert "4" not in answers(llm, bad_words=["4"])[0].text


def test_each_of_several_answers_obeys(llm: LLM) -> None:
    drawn = answers(llm, bad_words=["46", "6"], n=4, temperature=5.0, seed=1)
    assert len({answer.text for answer in drawn}) > 1
    assert all("6" not in answer.text for answer in drawn)


def test_only_allowed_tokens_are_written_and_a_repetition_ends_them(llm: LLM) -> None:
    detection = RepetitionDetectionParams(max_pattern_size=2, min_count=4)
    (answer,) = answers(llm, allowed_token_ids=ids(llm, "7"), repetition_detection=detection)
    assert (answer.text, answer.finish_reason) == ("7777", FinishReason.REPETITION)
    assert answer.stop_reason == "repetition_detected"


def test_thinking_is_ended_when_its_budget_is_spent(llm: LLM) -> None:
    thinking = ThinkingTokens(end=ids(llm, "99"))
    assert answers(llm, thinking_token_budget=1, thinking=thinking)[0].text == "499"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thinking_token_budget": 1}, "the tokens between which this model thinks are not known"),
        ({"allowed_token_ids": [10**6]}, "allowed_token_ids contains token id 1000000"),
        ({"allowed_token_ids": [2], "min_tokens": 1}, "no token is left to draw"),
        ({"bad_token_sequences": [[10**6]]}, "bad_token_sequences contains token id 1000000"),
        ({"repetition_detection": 3}, "repetition_detection must be RepetitionDetectionParams or None, got 3"),
        ({"thinking": "<think>"}, "thinking must be ThinkingTokens"),
        ({"bad_token_sequences": [[]]}, "1 to 32 tokens, got 0"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(llm: LLM, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        answers(llm, **fields)


@pytest.mark.parametrize(("choice", "answer"), [(("46", "47"), "47"), (("46", "4"), "4"), (("46",), "46")])
def test_of_what_a_grammar_allows_a_bad_word_is_left_out_unless_nothing_else_is_left(
    llm: LLM, choice: tuple[str, ...], answer: str
) -> None:
    form = StructuredOutputs(choice=choice)
    assert answers(llm, bad_words=["46"], structured_outputs=form)[0].text == answer


def test_a_grammar_comes_before_allowed_ids(llm: LLM) -> None:
    form = StructuredOutputs(choice=("46", "77"))
    assert answers(llm, allowed_token_ids=ids(llm, "7"), structured_outputs=form)[0].text == "77"
    assert answers(llm, allowed_token_ids=ids(llm, "8"), structured_outputs=form)[0].text == "46"
