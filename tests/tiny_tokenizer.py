"""Tokenizers small enough to see through, for tests that need real ones without a model."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MERGES = [("l", "o"), ("w", "o"), ("S", "T"), ("O", "P"), ("ST", "OP")]


def byte_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte, a few longer ones (`MERGES`), and `<eos>`, the last id."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = chat_template
    return tokenizer


def byte_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The text as one token per byte, whatever merges there are."""
    return [tokenizer.convert_tokens_to_ids(c) for b in text.encode() for c in _BYTE_TO_CHAR[b]]


def _byte_to_char() -> list[str]:
    """How byte-level vocabularies write each byte: printable ones as themselves, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(shifted)) for b in range(256)]


_BYTE_TO_CHAR = _byte_to_char()


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Words that carry their leading space (U+2581), and bytes for all else, as SentencePiece models have them."""
    words = ["\u2581hello", "\u2581world", "\u2581", "a"]
    vocabulary = {"<unk>": 0, **{f"<0x{b:02X}>": b + 1 for b in range(256)}}
    vocabulary.update({word: len(vocabulary) + i for i, word in enumerate(words)})
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
