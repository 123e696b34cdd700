"""The text of one sequence, token by token: `Detokenizer` makes the text, `StopScanner` finds stop strings in it.

Each sequence has its own two objects. They know nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Decode = Callable[[list[int]], str]

REPLACEMENT = "\ufffd"  # a decoder writes it for bytes that are not (yet) a character
MAX_PENDING_TOKENS = 16  # a character has at most 4 bytes; 16 tokens without a whole character are garbage
CONTEXT_SIZES = (6, 24, 96)  # prompt tokens of the first context; the first size that begins with a whole character


def make_decode(tokenizer: PreTrainedTokenizerBase | None, skip_special_tokens: bool) -> Decode:
    """A function from token ids to text; without a tokenizer it always returns the empty text.

    It calls a fast tokenizer without transformers' wrapper, which costs many times the decoding.
    """
    if tokenizer is None:
        return lambda _: ""
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        return lambda ids: backend.decode(ids, skip_special_tokens)
    size = len(tokenizer)  # the model may have padding ids above it, which only fast tokenizers skip

    def decode(ids: list[int]) -> str:
        known = [token for token in ids if token < size]
        return str(tokenizer.decode(known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))

    return decode


class Detokenizer:
    """Makes text from token ids, each character as soon as its last byte is there.

    The text of a token depends on the tokens before it (a leading space, the rest of a character). So the ids are
    decoded after a context, which is the ids of the last returned text. The text of the context is cut off:

        prompt ... | context | pending          returned: decode(context + pending) - decode(context)

    The text continues the prompt: the space between the prompt and its first word is part of it.
    """

    __slots__ = ("_context", "_decode", "_pending", "_prefix")

    def __init__(self, decode: Decode, prompt_token_ids: Sequence[int] = ()) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._prefix = ""
        self._pending: list[int] = []
        for size in CONTEXT_SIZES:
            context = list(prompt_token_ids[-size:])
            prefix = decode(context) if context else ""
            if not prefix.startswith(REPLACEMENT):  # a context cut inside a character could garble the next characters
                self._context, self._prefix = context, prefix
                break

    def step(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        pending = self._pending
        pending.append(token)
        text = self._decode(self._context + pending)
        new = self._after_prefix(text)
        if not new or new.endswith(REPLACEMENT):
            if len(pending) <= MAX_PENDING_TOKENS:
                return ""
            if not new:  # many tokens without text: keep the old context
                pending.clear()
                return ""
        self._context = pending
        self._prefix = self._decode(pending)
        self._pending = []
        return new

    def finish(self, tokens: Sequence[int] = ()) -> str:
        """The text of the pending tokens and of these last tokens. An incomplete character becomes U+FFFD."""
        self._pending.extend(tokens)
        if not self._pending:
            return ""
        new = self._after_prefix(self._decode(self._context + self._pending))
        self._pending = []
        return new

    def _after_prefix(self, text: str) -> str:
        if text.startswith(self._prefix):
            return text[len(self._prefix) :]
        # New bytes have changed the text of the context (byte-fallback tokenizers, on invalid bytes): drop the context.
        return self._decode(self._pending)


class StopScanner:
    """Looks for stop strings in a text that comes in pieces. It keeps back a text that may start a stop string.

    The stop string that is complete first wins, so the answer does not depend on how the text was cut into pieces. Of
    several that end at the same character, the longest wins.
    """

    __slots__ = ("_include", "_pending", "_stops")

    def __init__(self, stops: Sequence[str], include_in_output: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include_in_output
        self._pending = ""  # the longest end of the text so far that starts a stop string

    def feed(self, piece: str, *, search: bool = True) -> tuple[str, str | None]:
        """(the text that can be shown now, the stop string found or None). Feed nothing after a stop string is found.

        search: False: stop strings that this piece completes are ignored.
        """
        text = self._pending + piece
        found: str | None = None
        if search:
            end = len(text) + 1
            for stop in self._stops:
                at = text.find(stop)
                if at >= 0 and (at + len(stop), -len(stop)) < (end, -len(found or "")):
                    found, end = stop, at + len(stop)
            if found is not None:
                self._pending = ""
                return text[: end if self._include else end - len(found)], found
        cut = min((self._start_of(stop, text) for stop in self._stops), default=len(text))
        self._pending = text[cut:]
        return text[:cut], None

    def rest(self) -> str:
        """The text that is still kept back. Call it when no more text comes."""
        pending, self._pending = self._pending, ""
        return pending

    @staticmethod
    def _start_of(stop: str, text: str) -> int:
        """Where the longest proper start of `stop` that ends `text` begins; len(text) if there is none."""
        at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while at >= 0:
            if stop.startswith(text[at:]):
                return at
            at = text.find(stop[0], at + 1)
        return len(text)
