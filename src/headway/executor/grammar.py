"""A compiled grammar, and a request's place in it.

A matcher is told the tokens that were confirmed, in their order, and says which tokens may follow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarMatcher

Words = NDArray[np.int32]  # bit i of word w is token 32 * w + i

MOST_WHITE = 16  # tokens of white space one after another, in JSON


@dataclass(frozen=True, slots=True, eq=False)
class JsonTokens:
    """Tokens of a vocabulary that JSON has rules for, which the grammars of xgrammar do not have.

    white: that are white space and nothing else. A grammar allows any number of these, and a model that likes them
        would write nothing else.
    never: that have a control character, which JSON does not allow in a string, and a grammar of a string of bounded
        length does.
    """

    white: Words
    never: Words

    @classmethod
    def of(cls, vocabulary: Sequence[bytes], *, allowed: bytes = b"\n\r") -> JsonTokens:
        """vocabulary: the bytes of each token. allowed: control characters that may be part of the answer."""
        forbidden = bytes(set(range(0x20)) - set(allowed))
        return cls(
            _words(vocabulary, lambda text: not text.strip()),
            _words(vocabulary, lambda text: len(text.translate(None, forbidden)) < len(text)),
        )


def _words(vocabulary: Sequence[bytes], holds: Callable[[bytes], bool]) -> Words:
    words = np.zeros(-(-len(vocabulary) // 32), np.int32)
    only(words, [token for token, text in enumerate(vocabulary) if text and holds(text)])
    return words


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """A compiled grammar; any number of requests share it. json: of its vocabulary, for a grammar of JSON."""

    compiled: CompiledGrammar
    json: JsonTokens | None = None


class Progress:
    """How far the answer of one request is in its grammar.

    stop_token_ids: the tokens that may end the answer, besides those of the grammar's vocabulary.
    starts_after: tokens that end the reasoning; the grammar begins behind them.
    """

    def __init__(self, grammar: Grammar, stop_token_ids: Iterable[int], starts_after: Sequence[int] = ()) -> None:
        from xgrammar import GrammarMatcher

        compiled = grammar.compiled
        vocab_size = int(compiled.tokenizer_info.vocab_size)
        stops = {*compiled.tokenizer_info.stop_token_ids, *stop_token_ids}
        self.stops = sorted(token for token in stops if 0 <= token < vocab_size)
        self.matcher: GrammarMatcher = GrammarMatcher(compiled, override_stop_tokens=self.stops)
        self._starts_after = tuple(starts_after)
        self._last: deque[int] = deque(maxlen=len(self._starts_after))
        self._json = grammar.json
        self._num_white = 0  # tokens of white space since the last other token
        self.begun = not self._starts_after
        self.over = False  # the grammar has ended, or a token came that it does not have

    def take(self, tokens: Iterable[int]) -> None:
        """Confirmed tokens of the output."""
        for token in tokens:
            if self.over:
                return
            if self.begun:
                self._num_white = self._num_white + 1 if self._is_white(token) else 0
                self.over = not self.matcher.accept_token(token) or self.matcher.is_terminated()
            else:
                self._last.append(token)
                self.begun = tuple(self._last) == self._starts_after

    def _is_white(self, token: int) -> bool:
        return self._json is not None and bool(self._json.white[token >> 5] >> (token & 31) & 1)

    def keep_to_json(self, words: Words) -> None:
        """Forbid what JSON does not allow, and white space where there is enough, in place, unless nothing else is
        left."""
        if self._json is None:
            return
        words &= ~self._json.never
        if self._num_white >= MOST_WHITE:
            others = words & ~self._json.white
            if others.any():
                words[:] = others


def clear(words: Words, tokens: Sequence[int]) -> None:
    """Forbid tokens, in place."""
    unsigned = words.view(np.uint32)
    for token in tokens:
        unsigned[token >> 5] &= ~np.uint32(1 << (token & 31))


def only(words: Words, tokens: Sequence[int]) -> None:
    """Forbid all tokens but these, in place."""
    words[:] = 0
    unsigned = words.view(np.uint32)
    for token in tokens:
        unsigned[token >> 5] |= np.uint32(1 << (token & 31))
