"""From bad words to the token sequences that spell them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from headway.errors import RequestError
from headway.sampling import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[str], list[int]]


def spelled_out(sampling: SamplingParams, tokenizer: PreTrainedTokenizerBase) -> SamplingParams:
    """The parameters with `bad_token_sequences` in the place of `bad_words`. Raises RequestError for a word without
    tokens, and for more tokens than are taken."""
    if not sampling.bad_words:
        return sampling
    encode = partial(tokenizer.encode, add_special_tokens=False, verbose=False)
    spelled = [sequence for word in sampling.bad_words for sequence in _sequences(word, encode)]
    sequences = dict.fromkeys((*sampling.bad_token_sequences, *spelled))
    return replace(sampling, bad_words=(), bad_token_sequences=tuple(sequences))


def _sequences(word: str, encode: Encode) -> list[tuple[int, ...]]:
    """The tokens of the word at the start of a text; and after a space, unless these end with the former tokens."""
    bare = word.lstrip()
    first, later = tuple(encode(bare)), tuple(encode(f" {bare}"))
    if not first:
        raise RequestError(f"the bad word {word!r} has no tokens")
    return [first] if later[-len(first) :] == first else [first, later]
