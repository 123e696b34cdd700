"""The streams of OpenAI's completions and chat completions: lines of data, each a chunk of one choice, and [DONE]."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from headway.outputs import PromptPosition, RequestDelta, TokenLogprob
from headway.server.answers.answer_bodies import PromptEntries, Usage
from headway.server.answers.generate import Face, encode_json
from headway.server.answers.prompt_logprobs import entries
from headway.server.errors import ApiError

_DONE = b"data: [DONE]\n\n"


def token_name(token_id: int, token: TokenLogprob, *, by_id: bool) -> str:
    """What logprobs call a token."""
    return f"token_id:{token_id}" if by_id else token.decoded_token


class ChunkFace(Face):
    """include_usage: a last chunk has the usage. continuous_usage: every chunk has the usage so far.

    prompt_logprobs: alternatives per token of the prompt that the opening of a choice shows; None: it shows no
        log-probabilities.
    with_token_ids: choices have their token ids, and answers those of the prompt: see `show_prompt_ids`.
    named_by_ids: logprobs name a token by its id.
    """

    def __init__(
        self,
        *,
        include_usage: bool = False,
        continuous_usage: bool = False,
        prompt_logprobs: int | None = None,
        with_token_ids: bool = False,
        named_by_ids: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self._num_prompt_logprobs = prompt_logprobs
        self._scores: dict[int, Sequence[PromptPosition] | None] = {}  # by prompt; None: its answers have ended without
        self._held: dict[int, list[tuple[int, RequestDelta]]] = {}  # by prompt: what must not come before its scores
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
    def chunks(self, choice: int, delta: RequestDelta) -> Sequence[Any]:
        """The chunks for a delta of a choice; their `usage` can be set. Empty: this delta shows nothing yet."""

    @abstractmethod
    def closing(self, usage: Usage) -> msgspec.Struct:
        """The last chunk, with the usage, for a client that asked for it."""

    @property
    def needs_scores(self) -> bool:
        """Whether openings need the log-probabilities of prompts."""
        return self._num_prompt_logprobs is not None

    @abstractmethod
    def show_prompt_ids(self, chunk: Any, choice: int) -> None:
        """Put the token ids of the prompt into the first chunk of a choice."""

    def events(self, choice: int, delta: RequestDelta) -> Iterator[bytes]:
        prompt, answer = divmod(choice, self.n)
        if not self.needs_scores or prompt in self._scores:
            yield from self._events(choice, delta)
        elif answer:  # its prompt was in the cache, and answer 0 still computes it
            self._held.setdefault(prompt, []).append((choice, delta))
        else:
            self._scores[prompt] = delta.prompt_logprobs
            yield from self._events(choice, delta)
            for held in self._held.pop(prompt, ()):
                yield from self._events(*held)

    def _events(self, choice: int, delta: RequestDelta) -> Iterator[bytes]:
        if choice not in self._opened:
            self._opened.add(choice)
            if (opening := self.opening(choice)) is not None:
                self._show_prompt_ids_once(opening, choice)
                yield self._line(opening)
        ended = delta.finish_reason is not None
        shows_ids = self.with_token_ids and bool(delta.token_ids)
        if delta.text or delta.logprobs or ended or shows_ids or delta.kv_transfer_params is not None:
            for number, chunk in enumerate(self.chunks(choice, delta)):
                if self.with_token_ids and not number:
                    chunk.choices[0].token_ids = delta.token_ids
                    self._show_prompt_ids_once(chunk, choice)
                if delta.kv_transfer_params is not None and not number:
                    chunk.kv_transfer_params = delta.kv_transfer_params
                if self._continuous_usage:
                    chunk.usage = self.counts.usage()
                yield self._line(chunk)

    def _entries(self, scores: Sequence[PromptPosition] | None) -> PromptEntries | msgspec.UnsetType:
        """In vLLM's form; UNSET: not asked for."""
        if scores is None or self._num_prompt_logprobs is None:
            return msgspec.UNSET
        return entries(scores, self._num_prompt_logprobs)

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
