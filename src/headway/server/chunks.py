"""The streams of OpenAI's completions and chat completions: lines of data, each a chunk of one choice, and [DONE]."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import msgspec

from headway.outputs import RequestDelta, TokenLogprob
from headway.server.answer_bodies import Usage
from headway.server.errors import ApiError
from headway.server.generate import Face, encode_json

_DONE = b"data: [DONE]\n\n"


def token_name(token_id: int, token: TokenLogprob, *, by_id: bool) -> str:
    """What logprobs call a token."""
    return f"token_id:{token_id}" if by_id else token.decoded_token


class ChunkFace(Face):
    """include_usage: a last chunk has the usage. continuous_usage: every chunk has the usage so far.

    with_token_ids: choices have their token ids, and answers those of the prompt: see `show_prompt_ids`.
    named_by_ids: logprobs name a token by its id.
    """

    def __init__(
        self,
        *,
        include_usage: bool = False,
        continuous_usage: bool = False,
        with_token_ids: bool = False,
        named_by_ids: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.with_token_ids = with_token_ids
        self.named_by_ids = named_by_ids
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._opened: set[int] = set()  # the choices that have had a chunk
        self._prompts_shown: set[int] = set()  # the choices that have had the token ids of their prompt

    @abstractmethod
    def opening(self, choice: int) -> msgspec.Struct | None:
        """The first chunk of a choice, before its first delta; None: there is none."""

    @abstractmethod
    def chunk(self, choice: int, delta: RequestDelta) -> Any:
        """The chunk for a delta of a choice; its `usage` can be set. None: this delta shows nothing yet."""

    @abstractmethod
    def closing(self, usage: Usage) -> msgspec.Struct:
        """The last chunk, with the usage, for a client that asked for it."""

    @abstractmethod
    def show_prompt_ids(self, chunk: Any, choice: int) -> None:
        """Put the token ids of the prompt into the first chunk of a choice."""

    def events(self, choice: int, delta: RequestDelta) -> Iterator[bytes]:
        if choice not in self._opened:
            self._opened.add(choice)
            if (opening := self.opening(choice)) is not None:
                self._show_prompt_ids_once(opening, choice)
                yield self._line(opening)
        ended = delta.finish_reason is not None
        shows_ids = self.with_token_ids and bool(delta.token_ids)
        if delta.text or delta.logprobs or ended or shows_ids or delta.kv_transfer_params is not None:
            chunk = self.chunk(choice, delta)
            if chunk is None:
                return
            if self.with_token_ids:
                chunk.choices[0].token_ids = delta.token_ids
                self._show_prompt_ids_once(chunk, choice)
            if delta.kv_transfer_params is not None:
                chunk.kv_transfer_params = delta.kv_transfer_params
            if self._continuous_usage:
                chunk.usage = self.counts.usage()
            yield self._line(chunk)

    def end(self) -> Iterator[bytes]:
        if self._include_usage:
            yield self._line(self.closing(self.counts.usage()))
        yield _DONE

    def failed(self, error: ApiError) -> Iterator[bytes]:
        yield b"data: " + encode_json(error.body()) + b"\n\n"
        yield _DONE

    def _show_prompt_ids_once(self, chunk: Any, choice: int) -> None:
        if self.with_token_ids and choice not in self._prompts_shown:
            self._prompts_shown.add(choice)
            self.show_prompt_ids(chunk, choice)

    def _line(self, chunk: Any) -> bytes:
        if self._include_usage and chunk.usage is msgspec.UNSET:
            chunk.usage = None  # as OpenAI's API: null in every chunk but the last
        return b"data: " + encode_json(chunk) + b"\n\n"
