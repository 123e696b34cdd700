"""Bad words become the token sequences that spell them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from headway.client.bad_words import spelled_out
from headway.errors import RequestError
from headway.sampling import MAX_BAD_SEQUENCE, SamplingParams


def tokenizer() -> PreTrainedTokenizerFast:
    """Words of byte-level BPE, which carry the space before them."""
    pieces = ["a", "b", "c", "\u0120", "\u0120a", "ab"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [("\u0120", "a"), ("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sequences(*words: str, **more: object) -> tuple[tuple[int, ...], ...]:
    spelled = spelled_out(SamplingParams(bad_words=words, **more), tokenizer())  # type: ignore[arg-type]
    assert spelled.bad_words == ()
    return spelled.bad_token_sequences


def test_a_word_is_bad_at_the_start_of_a_text_and_after_a_space() -> None:
    assert sequences("ac") == ((0, 2), (4, 2))


def test_leading_spaces_of_the_word_do_not_matter() -> None:
    assert sequences("  ac") == sequences("ac")


def test_both_spellings_count_also_where_they_have_different_lengths() -> None:
    assert sequences("ab") == ((5,), (4, 1))


def test_a_spelling_that_ends_with_the_other_is_not_needed() -> None:
    assert sequences("c") == ((2,),), "a space and the word"


def test_sequences_that_were_given_stay() -> None:
    assert sequences("c", bad_token_sequences=[[1, 1], [2]]) == ((1, 1), (2,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("?",), "has no tokens"),
        (("c" * (MAX_BAD_SEQUENCE + 1),), f"1 to {MAX_BAD_SEQUENCE} tokens, got {MAX_BAD_SEQUENCE + 1}"),
        (("c" * 129,), "at most 128 characters, got 129"),
        (("",), "not empty"),
        (("a",) * 2 + tuple(map(str, range(128))), "at most 128 words, got 129"),
        ("ab", "must be a list of words"),
    ],
)
def test_what_is_no_word_or_too_long_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        spelled_out(SamplingParams(bad_words=words), tokenizer())
