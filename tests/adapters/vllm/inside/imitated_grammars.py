"""A structured-output manager without a backend. The tokens that a grammar allows depend on how many tokens it has
accepted, so a mask that was made too early forbids what comes."""

from __future__ import annotations

from typing import Any

import numpy as np
from imitated_worker import FIRST_TOKEN, NUM_TOKENS
from numpy.typing import NDArray

WORDS = 3  # of 32 bits, for the vocabulary


class ImitatedGrammar:
    """Allows a fourth of the vocabulary, another fourth after each token."""

    def __init__(self) -> None:
        self.num_accepted = 0

    def allowed(self) -> list[int]:
        return allowed_after(self.num_accepted)


def allowed_after(num_accepted: int) -> list[int]:
    return [token for token in range(FIRST_TOKEN, FIRST_TOKEN + NUM_TOKENS) if token % 4 == num_accepted % 4]


class ImitatedGrammars:
    """What a scheduler uses of vLLM's StructuredOutputManager."""

    def grammar_bitmask(self, requests: dict[str, Any], names: list[str], _drafts: Any) -> NDArray[np.int32]:
        bits = np.zeros((len(names), WORDS * 32), dtype=np.uint8)
        for row, name in zip(bits, names, strict=True):
            row[requests[name].structured_output_request.grammar.allowed()] = 1
        return np.packbits(bits, axis=1, bitorder="little").view(np.int32)

    def accept_tokens(self, request: Any, tokens: list[int]) -> bool:
        if not request.use_structured_output:
            return True
        grammar = request.structured_output_request.grammar
        for token in tokens:
            if token not in grammar.allowed():
                return False
            grammar.num_accepted += 1
        return True
