"""Tokenizers of many kinds, and what text their ids have, by another way than the detokenizer's."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.tiny_tokenizer import byte_tokenizer, fallback_tokenizer

_WORDS = ["hello", "world", "##ing", "\u2581hello", "\u2581", "\u2581\u2581", ".", "n't", "end</w>", "a", "é", "\ufffd"]


def word_tokenizer(decoder: decoders.Decoder | None) -> PreTrainedTokenizerFast:
    """A fast tokenizer of a few words with this decoder."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="a"))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    backend.add_tokens([AddedToken("<think>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


class SlowBytes(PreTrainedTokenizer):
    """A tokenizer written in Python with one token per byte, as older byte-level BPE tokenizers are."""

    def __init__(self) -> None:
        super().__init__(eos_token="</s>")

    @property
    def vocab_size(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {chr(0x100 + i): i for i in range(256)} | self.added_tokens_encoder

    def _convert_id_to_token(self, index: int) -> str:
        return chr(0x100 + index)

    def _convert_token_to_id(self, token: str) -> int | None:
        return ord(token) - 0x100 if len(token) == 1 else None

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        parts = [bytes([ord(token) - 0x100]) if len(token) == 1 else token.encode() for token in tokens]
        return b"".join(parts).decode(errors="replace")


class SlowPieces(SlowBytes):
    """A tokenizer written in Python that reads bytes as SentencePiece does: an invalid byte is one U+FFFD. The token of
    a space is left out at the start of a text."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        data = b"".join(bytes([ord(token) - 0x100]) if len(token) == 1 else token.encode() for token in tokens)
        text = ""
        while data:
            for length in (1, 2, 3, 4):
                try:
                    character = data[:length].decode()
                except UnicodeDecodeError:
                    continue
                break
            else:
                length, character = 1, "\ufffd"
            text, data = text + character, data[length:]
        return text.removeprefix(" ")


class SlowStripped(SlowBytes):
    """A tokenizer written in Python that strips every text."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return super().convert_tokens_to_string(tokens).strip(" ")


def odd_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-fallback tokenizer whose decoder strips the end of a text too: one invalid byte spoils all bytes in its
    row, and the text of a token depends on the tokens after it."""
    tokenizer = fallback_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 2, 0)]
    )
    return tokenizer


EXACT: dict[str, PreTrainedTokenizerBase] = {  # whose own decode is the reference for all ids
    "byte-level": byte_tokenizer(),
    "slow bytes": SlowBytes(),
    "Metaspace": word_tokenizer(decoders.Metaspace()),
    "WordPiece": word_tokenizer(decoders.WordPiece(cleanup=True)),
    "no decoder": word_tokenizer(None),
    "BPEDecoder": word_tokenizer(decoders.BPEDecoder()),
    "Replace, Fuse": word_tokenizer(decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])),
}
FALLBACK = fallback_tokenizer()
SLOW_PIECES = SlowPieces()
ALL = EXACT | {
    "byte fallback": FALLBACK,
    "slow pieces": SLOW_PIECES,
    "slow stripped": SlowStripped(),
    "odd byte fallback": odd_fallback_tokenizer(),
}


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int], skip: bool) -> str:
    """The text of ids. Of a byte-fallback tokenizer: bytes are read as UTF-8, and U+FFFD spoils no character."""
    if tokenizer is not FALLBACK:
        if tokenizer.is_fast:
            return str(tokenizer.backend_tokenizer.decode(ids, skip))
        return str(tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))
    data = b""
    for token in ids:
        name = tokenizer.convert_ids_to_tokens(token)
        if name.startswith("<0x"):
            data += bytes([int(name[3:5], 16)])
        elif not (skip and name in tokenizer.all_special_tokens):
            data += name.replace("\u2581", " ").encode()
    return data.removeprefix(b" ").decode(errors="replace")


def answer_of(tokenizer: PreTrainedTokenizerBase, prompt: list[int], ids: list[int], skip: bool) -> str:
    """The text of the prompt and the ids, less that of the prompt."""
    before, both = text_of(tokenizer, prompt, skip), text_of(tokenizer, prompt + ids, skip)
    same = 0
    while both[same : same + 1] and both[same : same + 1] == before[same : same + 1]:
        same += 1
    return both[same:]
