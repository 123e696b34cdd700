"""How long a text may be, in characters, so that an overlong prompt is refused before it is tokenised.

A token stands for at most as many characters as the longest token of the vocabulary has (added tokens included), so a
text of more than max_model_len times as many cannot fit. That is exact for tokenizers that keep every character. Some
shrink the text first: canonical composition (NFC, NFKC) makes one character of at most four; others drop characters,
or make one token of a run of unknown characters, without any limit. For the last kind the bound is SHRINKS_FREELY times
as wide: a longer text is refused, although it might have fitted.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from headway.errors import ContextLengthError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPOSES = 4  # characters that canonical composition makes into one, at most
SHRINKS_FREELY = 16

_KEEPS = {"ByteLevel", "Prepend", "Lowercase", "NFD", "NFKD"}  # normalizers that never lose a character
_COMPOSES = {"NFC", "NFKC"}


class TextLimit:
    """The most characters of a prompt. per_token: characters that one token may stand for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        self.max_model_len = max_model_len
        self.per_token = max(map(len, tokenizer.get_vocab()), default=1) * _shrinks(tokenizer)
        self.characters = max_model_len * self.per_token

    def check(self, num_characters: int) -> None:
        """Raises ContextLengthError that names value and limit for a text that is too long."""
        if num_characters > self.characters:
            raise ContextLengthError.of(
                self.max_model_len,
                f"the prompt is too long: it has {num_characters} characters, and at most {self.characters} can fit, "
                f"since a token stands for at most {self.per_token}: shorten the prompt",
            )


def _shrinks(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many characters of a text become one character of a token, at most."""
    if not tokenizer.is_fast:
        return SHRINKS_FREELY
    backend = tokenizer.backend_tokenizer
    before = _steps(backend.normalizer) + _steps(backend.pre_tokenizer)
    covers_bytes = getattr(backend.model, "byte_fallback", False) or any(step["type"] == "ByteLevel" for step in before)
    eats_spaces = any(token.lstrip or token.rstrip for token in tokenizer.added_tokens_decoder.values())
    if not covers_bytes or eats_spaces or any(_drops(step) for step in before):
        return SHRINKS_FREELY
    return COMPOSES if any(step["type"] in _COMPOSES for step in before) else 1


def _steps(component: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, in the form of tokenizer.json."""
    if component is None:
        return []
    return _flat(json.loads(component.__getstate__()))


def _flat(step: dict[str, Any]) -> list[dict[str, Any]]:
    nested = step.get("normalizers") or step.get("pretokenizers")
    return [step] if nested is None else [inner for part in nested for inner in _flat(part)]


def _drops(step: dict[str, Any]) -> bool:
    """Whether this step can lose characters without limit, as far as is known of it."""
    match step["type"]:
        case "Replace":
            return len(step["content"]) < len(step["pattern"].get("String", step["content"] + "?"))  # "?": a regex
        case "Split" | "Punctuation":
            return bool(step.get("behavior") == "Removed")
        case "Metaspace" | "Digits":
            return False
    return step["type"] not in _KEEPS | _COMPOSES
