"""The bytes of each token: what `Detokenizer` makes text from, and what logprobs show."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from headway.client.special_tokens import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PER_TOKEN = {"Replace", "ByteFallback", "Metaspace", "WordPiece"}  # decoders that write each token by itself
_AFTER_FUSE = {"Strip"}  # decoders of the whole text of which the start alone changes


class TokenPieces:
    """The bytes that each token of a tokenizer adds to a text.

    skip_special_tokens: special tokens add nothing (`hidden`). shown: texts of special tokens that add theirs anyway.
    independent: whether the bytes of a token are the same after all other tokens. Only the first token of a text may
        differ: its space is left out. It is so with byte-level BPE, SentencePiece and WordPiece in fast tokenizers.

    Without a tokenizer no token has bytes.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, *, skip_special_tokens: bool, shown: Collection[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(tokenizer)
        self._byte_level = kinds == ["ByteLevel"]
        self._byte_fallback = kinds is not None and "ByteFallback" in kinds
        self.independent = tokenizer is None or self._byte_level or _is_per_token(kinds)
        self.special = special_tokens(tokenizer)
        self.hidden = frozenset(
            token for text, token in self.special.items() if skip_special_tokens and text not in shown
        )
        self._skip = skip_special_tokens and len(self.hidden) == len(self.special)
        self._size = 0 if tokenizer is None else len(tokenizer)
        self._pieces: dict[int, bytes] = {}  # these three are no larger than the vocabulary
        self._first: dict[int, bytes] = {}
        self._names: dict[int, str] = {}

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, decoded at once; ids that the tokenizer does not have are left out.

        It calls a fast tokenizer without transformers' wrapper, which costs many times the decoding.
        """
        if self.hidden and not self._skip:
            ids = [token for token in ids if token not in self.hidden]
        return self._decode(ids, skip=self._skip)

    def of(self, token: int) -> bytes:
        """The bytes that the token adds after another token. Only if tokens are `independent`."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._find(token)
        return piece

    def first(self, token: int) -> bytes:
        """The bytes of the token at the start of a text. Only if tokens are `independent`."""
        piece = self._first.get(token)
        if piece is None:
            piece = self.of(token)
            if not self._byte_level and not (piece and piece[0] >= 0x80 and self._byte_of(token) is not None):
                piece = self.decode([token]).encode()
            self._first[token] = piece
        return piece

    def name(self, token: int) -> str:
        """The text of a token by itself, special tokens written out."""
        name = self._names.get(token)
        if name is None:
            name = self._names[token] = self._decode([token], skip=False)
        return name

    def is_visible(self, token: int) -> bool:
        """Whether the decoder sees the token: it is known and not hidden."""
        return token not in self.hidden and self._text_of(token) is not None

    def _find(self, token: int) -> bytes:
        if not self.is_visible(token):
            return b""
        if self._byte_level:
            return _bytes_of_byte_level(self._text_of(token) or "")
        byte = self._byte_of(token)
        if byte is not None:
            return byte
        # After itself, a token has the text that it has after any other token.
        return self.decode([token, token]).removeprefix(self.decode([token])).encode()

    def _byte_of(self, token: int) -> bytes | None:
        """The byte of a token like <0xE2>; None for other tokens."""
        match = _BYTE_TOKEN.fullmatch(self._text_of(token) or "") if self._byte_fallback else None
        return None if match is None else bytes([int(match[1], 16)])

    def _text_of(self, token: int) -> str | None:
        """The token as the vocabulary writes it; None for an id that the tokenizer does not have."""
        if self._tokenizer is None or (not self._tokenizer.is_fast and token >= self._size):
            return None
        text: str | None = self._tokenizer.convert_ids_to_tokens(token)
        return text

    def _decode(self, ids: list[int], *, skip: bool) -> str:
        tokenizer = self._tokenizer
        if tokenizer is None:
            return ""
        if tokenizer.is_fast:
            return str(tokenizer.backend_tokenizer.decode(ids, skip))
        known = [token for token in ids if token < self._size]  # the model may have padding ids above it
        return str(tokenizer.decode(known, skip_special_tokens=skip, clean_up_tokenization_spaces=False))


def _decoder_kinds(tokenizer: PreTrainedTokenizerBase | None) -> list[str] | None:
    """The types of a fast tokenizer's decoders, in their order; None for a slow tokenizer."""
    if tokenizer is None or not tokenizer.is_fast:
        return None
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return []  # tokens are joined with spaces
    return _kinds(json.loads(decoder.__getstate__()))


def _kinds(decoder: dict[str, Any]) -> list[str]:
    if decoder["type"] == "Sequence":
        return [kind for part in decoder["decoders"] for kind in _kinds(part)]
    if decoder["type"] == "Strip" and (decoder["start"] > 1 or decoder["stop"] > 0):
        return ["a longer Strip"]  # the text of more than the first token depends on its neighbours
    return [str(decoder["type"])]


def _is_per_token(kinds: list[str] | None) -> bool:
    if kinds is None:
        return False
    at = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    return set(kinds[:at]) <= _PER_TOKEN and set(kinds[at + 1 :]) <= _AFTER_FUSE


def _byte_alphabet() -> dict[str, int]:
    """How byte-level vocabularies write bytes: printable characters stand for themselves, others begin at U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()


def _bytes_of_byte_level(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary. An added token with other characters is its own text."""
    try:
        return bytes([_BYTE_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()
