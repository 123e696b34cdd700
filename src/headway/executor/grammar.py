"""A compiled grammar, and a request's place in it.

A matcher is told the tokens that were confirmed, in their order, and says which tokens may follow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarMatcher

Words = NDArray[np.int32]  # bit i of word w is token 32 * w + i


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """A compiled grammar; any number of requests share it."""

    compiled: CompiledGrammar


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
        self.begun = not self._starts_after
        self.over = False  # the grammar has ended, or a token came that it does not have

    def take(self, tokens: Iterable[int]) -> None:
        """Confirmed tokens of the output."""
        for token in tokens:
            if self.over:
                return
            if self.begun:
                self.over = not self.matcher.accept_token(token) or self.matcher.is_terminated()
            else:
                self._last.append(token)
                self.begun = tuple(self._last) == self._starts_after


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
