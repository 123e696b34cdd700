"""An answer that repeats itself ends, if the request asks for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.client.repetition_scanner import RepetitionScanner
from headway.errors import RequestError
from headway.repetition_detection import RepetitionDetectionParams
from headway.request import FinishReason
from tests.client.test_token_processor import Run, end, ids


def params(longest: int, shortest: int = 0, count: int = 3) -> RepetitionDetectionParams:
    return RepetitionDetectionParams(max_pattern_size=longest, min_pattern_size=shortest, min_count=count)


def repeats(tokens: list[int], asked: RepetitionDetectionParams) -> bool:
    """By definition."""
    sizes = range(max(asked.min_pattern_size, 1), asked.max_pattern_size + 1)
    return any(
        len(tokens) >= size * asked.min_count and tokens[-size * asked.min_count :] == tokens[-size:] * asked.min_count
        for size in sizes
    )


@given(
    tokens=st.lists(st.integers(0, 2), max_size=40),
    longest=st.integers(0, 6),
    shortest=st.integers(0, 6),
    count=st.integers(2, 4),
)
def test_a_pattern_is_found_where_its_last_repetition_ends(
    tokens: list[int], longest: int, shortest: int, count: int
) -> None:
    asked = params(longest, min(shortest, longest), count)
    scanner = RepetitionScanner(asked)
    assert [scanner.feed(token) for token in tokens] == [repeats(tokens[: i + 1], asked) for i in range(len(tokens))]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_the_answer_ends_where_it_repeats_itself_and_the_engine_is_told(stream: bool, one_by_one: bool) -> None:
    run = Run(stream=stream, max_tokens=100, repetition_detection=params(4))
    run.feed(*ids("Well, ha ha ha ha ha"), one_by_one=one_by_one)
    reader = run.reader
    if not stream:
        (answer,) = run.output.outputs
        reader.text, reader.token_ids, reader.finish_reason, reader.stop_reason = (
            answer.text, answer.token_ids, answer.finish_reason, answer.stop_reason,
        )  # fmt: skip
    assert (reader.text, len(reader.token_ids)) == ("Well, ha ha ha", 14)
    assert (reader.finish_reason, reader.stop_reason) == (FinishReason.REPETITION, "repetition_detected")
    assert run.stop_uids == [1]


def test_text_that_was_kept_back_is_given_out() -> None:
    run = Run(stream=False, max_tokens=100, stop=["aab"], repetition_detection=params(1))
    run.feed(*ids("baaaa"))
    assert run.result()[:1] == ("baaa",)


def test_min_tokens_come_first() -> None:
    run = Run(stream=False, max_tokens=100, min_tokens=6, repetition_detection=params(1))
    run.feed(*ids("aaaaaaaa"))
    assert run.result()[0] == "a" * 6


def test_the_reason_of_the_engine_counts_at_the_last_token() -> None:
    run = Run(stream=False, max_tokens=3, repetition_detection=params(1))
    run.feed(*ids("aaa"), last=end(1, FinishReason.LENGTH))
    assert run.result()[2] is FinishReason.LENGTH and run.stop_uids == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_pattern_size": -1}, r"max_pattern_size must be an integer in \[0, 1024\], got -1"),
        ({"max_pattern_size": 2, "min_pattern_size": 3, "min_count": 2}, r"min_pattern_size .* in \[0, 2\]"),
        ({"max_pattern_size": 2, "min_count": 1}, r"min_count must be an integer in \[2, 10000\], got 1"),
        ({"max_pattern_size": 5000, "min_count": 2}, "max_pattern_size"),
        ({"max_pattern_size": 2.5, "min_count": 2}, "max_pattern_size"),
    ],
)
def test_sizes_and_counts_that_make_no_sense_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        RepetitionDetectionParams(**fields)
