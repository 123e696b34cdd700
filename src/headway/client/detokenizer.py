"""The text of one sequence, token by token.

Each sequence has its own detokenizer, which knows nothing of requests. Whole and streamed answers use it in the same
way, one token after the other, so the same tokens give the same text.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice

from headway.client.token_pieces import TokenPieces
from headway.outputs import TokenLogprob

REPLACEMENT = "\ufffd"  # stands for bytes that are not (yet) a character
_SURROGATE = b"\xed\xa0"  # the first bytes that surrogates would have: UTF-8 has none, so no character begins like this
_LONGEST_BEGUN = 3  # bytes of a character that is not complete, and so the most U+FFFD that may stand for them
_MAX_WINDOW = 32  # tokens that are decoded at once, at most
_CONTEXT = 8  # tokens that stay when the window is too long: more than a begun character has
_MAX_HIDDEN = 512  # last tokens of the prompt among which tokens with a text are sought


class Detokenizer(ABC):
    """Makes text from token ids: each character as soon as its last byte is there.

    The text continues the prompt: the space between the prompt and its first word is part of it, and a character that
    the prompt has begun. Bytes that are no character read as U+FFFD.
    """

    __slots__ = ("pieces",)

    def __init__(self, pieces: TokenPieces) -> None:
        self.pieces = pieces

    @staticmethod
    def of(pieces: TokenPieces, prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
        """A detokenizer for an answer to this prompt, of the kind that the tokenizer needs."""
        if pieces.independent:
            return BytesDetokenizer(pieces, prompt_token_ids)
        return WindowDetokenizer(pieces, prompt_token_ids)

    @abstractmethod
    def step(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""

    @abstractmethod
    def peek(self, token: int) -> tuple[str, bytes]:
        """What `step` would return for this token, and the bytes that the token would add. Changes nothing."""

    def logprob(self, token: int, logprob: float, rank: int) -> TokenLogprob:
        """The log-probability of this token in the place of the next one, with its text. Changes nothing."""
        text, own = self.peek(token)
        return TokenLogprob(logprob, rank, text if own else self.pieces.name(token), own)

    @abstractmethod
    def finish(self) -> str:
        """The rest of the text, when no more tokens come: U+FFFD if a character is incomplete."""


class BytesDetokenizer(Detokenizer):
    """For tokenizers of which each token has bytes of its own: joins them and reads them as UTF-8."""

    __slots__ = ("_at_start", "_begun", "_shown_in_prompt")

    def __init__(self, pieces: TokenPieces, prompt_token_ids: Sequence[int] = ()) -> None:
        super().__init__(pieces)
        tail = b""
        for token in prompt_token_ids[: -_MAX_HIDDEN - 1 : -1]:
            tail = pieces.of(token) + tail
            if len(tail) >= _LONGEST_BEGUN:
                break
        self._at_start = not tail and not any(pieces.is_visible(token) for token in prompt_token_ids)
        self._begun = b""  # the bytes of a character that is not complete
        _, self._begun = self._read(tail[-_LONGEST_BEGUN:])
        self._shown_in_prompt = bool(self._begun)  # the prompt began this character, and shows it as U+FFFD

    def step(self, token: int) -> str:
        piece = self.pieces.of(token)
        if self._at_start:
            piece = self.pieces.first(token)
            self._at_start = not self.pieces.is_visible(token)
        text, self._begun = self._read(piece)
        return self._less_prompt(text) if self._shown_in_prompt else text

    def peek(self, token: int) -> tuple[str, bytes]:
        piece = self.pieces.first(token) if self._at_start else self.pieces.of(token)
        text, _ = self._read(piece)
        if self._shown_in_prompt and text.startswith(REPLACEMENT):
            text = text[1:]
        return text, piece

    def finish(self) -> str:
        text, self._begun = self._begun.decode(errors="replace"), b""
        return self._less_prompt(text)

    def _read(self, piece: bytes) -> tuple[str, bytes]:
        """The text that the piece completes, and the bytes of the character that is then begun."""
        data = self._begun + piece
        text, length = codecs.utf_8_decode(data, "replace", False)
        begun = data[length:]
        if begun[:1] == _SURROGATE[:1] and begun >= _SURROGATE:  # Python waits for the third byte of it
            return text + begun.decode(errors="replace"), b""
        return text, begun

    def _less_prompt(self, text: str) -> str:
        """The text without the U+FFFD that the prompt has shown."""
        if self._shown_in_prompt and text:
            self._shown_in_prompt = False
            return text.removeprefix(REPLACEMENT)
        return text


class WindowDetokenizer(Detokenizer):
    """For all other tokenizers: only `decode` is known. The text of a token may depend on the tokens before it.

    It decodes a window of the last tokens, which begins with tokens whose text is out already:

        prompt ... | window, with the new token        returned: decode(window) - what was out of it

    U+FFFD at its end may still become a character, and is kept back. The window has at most 32 tokens, so that the work
    per token has a bound, whatever the tokens are.
    """

    __slots__ = ("_num_out", "_out", "_window")

    def __init__(self, pieces: TokenPieces, prompt_token_ids: Sequence[int] = ()) -> None:
        super().__init__(pieces)
        visible = filter(pieces.is_visible, reversed(prompt_token_ids[-_MAX_HIDDEN:]))
        self._window = list(islice(visible, _CONTEXT))[::-1]
        self._num_out = len(self._window)  # the tokens at the start of the window whose text is out completely
        self._out = pieces.decode(self._window) if self._window else ""  # the part of the window's text that is out

    def step(self, token: int) -> str:
        if not self.pieces.is_visible(token):
            return ""
        window, num_out, out, text = self._with(token)
        new = text[len(out) :]
        kept_back = _num_kept_back(new)
        if new and not kept_back:  # the window begins anew with the tokens of this text
            window = window[num_out:]
            num_out, text = len(window), self.pieces.decode(window)
        elif len(window) > _MAX_WINDOW:
            context = window[:num_out][-1:]
            num_out, window = len(context), [*context, *window[-_CONTEXT:]]
            text = self.pieces.decode(window)
        self._window, self._num_out, self._out = window, num_out, text[: len(text) - kept_back]
        return new[: len(new) - kept_back]

    def peek(self, token: int) -> tuple[str, bytes]:
        if not self.pieces.is_visible(token):
            return "", b""
        *_, out, text = self._with(token)
        new = text[len(out) :]
        new = new[: len(new) - _num_kept_back(new)]
        return new, new.encode()

    def finish(self) -> str:
        text = self.pieces.decode(self._window) if self._window else ""
        rest, self._out = text[len(self._out) :], text
        return rest

    def _with(self, token: int) -> tuple[list[int], int, str, str]:
        """The window with this token: its tokens, the number of them whose text is out, the part of its text that is
        out, and its text."""
        window = [*self._window, token]
        text = self.pieces.decode(window)
        for begun in range(_num_kept_back(self._out) + 1):  # U+FFFD at the end of the prompt that is a character now
            out = self._out[: len(self._out) - begun]
            if text.startswith(out):
                return window, self._num_out, out, text
        # The new bytes have changed how the tokens before them read: leave out the tokens whose text is out.
        window = window[self._num_out :]
        return window, 0, "", self.pieces.decode(window)


def _num_kept_back(text: str) -> int:
    """How many U+FFFD at the end of a text may still become a character."""
    return min(len(text) - len(text.rstrip(REPLACEMENT)), _LONGEST_BEGUN)
