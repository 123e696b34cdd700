"""The text of one sequence, as its tokens come: `Detokenizer` makes it, `StopScanner` ends it.

Both are plain objects that belong to one sequence and know nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Decode = Callable[[list[int]], str]

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not (yet) a character
MAX_HELD_TOKENS = 16  # a character is at most 4 bytes; who still has none after 16 tokens writes garbage
CONTEXT_SIZES = (6, 24, 96)  # prompt tokens to start from; the first that begins with a whole character


def make_decode(tokenizer: PreTrainedTokenizerBase | None, skip_special_tokens: bool) -> Decode:
    """ids -> text; without a tokenizer, always the empty text.

    A fast tokenizer is called below transformers' wrapper, which costs many times the decoding.
    """
    if tokenizer is None:
        return lambda _: ""
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        return lambda ids: backend.decode(ids, skip_special_tokens)
    size = len(tokenizer)  # a model's vocabulary may be padded beyond it; fast tokenizers skip such ids themselves

    def decode(ids: list[int]) -> str:
        known = [token for token in ids if token < size]
        return str(tokenizer.decode(known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))

    return decode


class Detokenizer:
    """Makes text from token ids, each character as soon as its last byte is there.

    What a token reads depends on those before it (a leading space, the rest of a character), so the ids are
    decoded after a context, the ids of the last text given out, and the context's own text is cut off:

        prompt ... | context | pending          given out: decode(context + pending) - decode(context)

    The text continues the prompt: its first word keeps the space that stands between the two.
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
            if not prefix.startswith(REPLACEMENT):  # cut inside a character, it could garble the next ones too
                self._context, self._prefix = context, prefix
                break

    def step(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        pending = self._pending
        pending.append(token)
        text = self._decode(self._context + pending)
        new = self._after_prefix(text)
        if not new or new.endswith(REPLACEMENT):
            if len(pending) <= MAX_HELD_TOKENS:
                return ""
            if not new:  # a run of tokens without text: the old context is the better one
                pending.clear()
                return ""
        self._context = pending
        self._prefix = self._decode(pending)
        self._pending = []
        return new

    def finish(self, tokens: Sequence[int] = ()) -> str:
        """The text of these last tokens, and of what was held: a character still incomplete reads U+FFFD."""
        self._pending.extend(tokens)
        if not self._pending:
            return ""
        new = self._after_prefix(self._decode(self._context + self._pending))
        self._pending = []
        return new

    def _after_prefix(self, text: str) -> str:
        if text.startswith(self._prefix):
            return text[len(self._prefix) :]
        # New bytes changed how the context reads (byte-fallback tokenizers, on invalid bytes): go without it.
        return self._decode(self._pending)


class StopScanner:
    """Looks for stop strings in a text that comes in pieces, and holds back what may be the start of one.

    The first string to be complete wins, so the answer does not depend on how the text was cut into pieces;
    of those that end together, the longest.
    """

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: Sequence[str], include_in_output: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include_in_output
        self._held = ""  # the longest end of the text so far that starts a stop string

    def feed(self, piece: str, *, search: bool = True) -> tuple[str, str | None]:
        """(text that may be shown now, the stop string found). After a find nothing may be fed any more.

        search: False lets whole stop strings in this piece pass.
        """
        text = self._held + piece
        found: str | None = None
        if search:
            end = len(text) + 1
            for stop in self._stops:
                at = text.find(stop)
                if at >= 0 and (at + len(stop), -len(stop)) < (end, -len(found or "")):
                    found, end = stop, at + len(stop)
            if found is not None:
                self._held = ""
                return text[: end if self._include else end - len(found)], found
        cut = min((self._start_of(stop, text) for stop in self._stops), default=len(text))
        self._held = text[cut:]
        return text[:cut], None

    def rest(self) -> str:
        """What is still held, when no more text comes."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _start_of(stop: str, text: str) -> int:
        """Where the longest proper start of `stop` that ends `text` begins; len(text) if there is none."""
        at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while at >= 0:
            if stop.startswith(text[at:]):
                return at
            at = text.find(stop[0], at + 1)
        return len(text)
