"""The special tokens of a tokenizer: which they are, and how a text that spells them stays a text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEPARATORS = (" ", "\u200b", "\u2060")  # the first that is in no special token parts their names


def special_tokens(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, int]:
    """The special tokens that a tokenizer leaves out of a text on request: their text and their ids."""
    if tokenizer is None:
        return {}
    if tokenizer.is_fast:
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}
    return dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


class SpecialTokenEscape:
    """Changes a text so that the tokenizer finds no special token in it: a space follows the first character of each.

    "<|im_end|>" becomes "< |im_end|>". A special token of one character is replaced by the space. All other text stays
    as it is.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        names = sorted(filter(None, special_tokens(tokenizer)), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None
        self._separator = next(mark for mark in _SEPARATORS if not any(mark in name for name in names))

    def __call__(self, text: str) -> str:
        """The changed text."""
        if self._pattern is None:
            return text
        found = 1
        while found:  # names may overlap; each turn parts some and makes none, as no name has the separator
            text, found = self._pattern.subn(self._part, text)
        return text

    def _part(self, match: re.Match[str]) -> str:
        name = match[0]
        return name[0] + self._separator + name[1:] if len(name) > 1 else self._separator
