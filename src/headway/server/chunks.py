"""The streams of OpenAI's completions and chat completions: lines of data, each a chunk of one choice, and [DONE]."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from headway.outputs import PromptPosition, RequestDelta
from headway.server.answer_bodies import PromptEntries, Usage
from headway.server.errors import ApiError
from headway.server.generate import Face, encode_json
from headway.server.prompt_logprobs import entries

_DONE = b"data: [DONE]\n\n"


class ChunkFace(Face):
    """include_usage: a last chunk has the usage. continuous_usage: every chunk has the usage so far. prompt_logprobs:
    alternatives per token of the prompt that the opening of a choice shows; None: it shows no log-probabilities."""

    def __init__(
        self,
        *,
        include_usage: bool = False,
        continuous_usage: bool = False,
        prompt_logprobs: int | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self._num_prompt_logprobs = prompt_logprobs
        self._scores: dict[int, Sequence[PromptPosition] | None] = {}  # by prompt; None: its answers have ended without
        self._held: dict[int, list[tuple[int, RequestDelta]]] = {}  # by prompt: what must not come before its scores
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._opened: set[int] = set()  # the choices that have had a chunk

    @abstractmethod
    def opening(self, choice: int) -> msgspec.Struct | None:
        """The first chunk of a choice, before its first delta; None: there is none."""

    @abstractmethod
    def chunk(self, choice: int, delta: RequestDelta) -> Any:
        """The chunk for a delta of a choice; its `usage` can be set. None: this delta shows nothing yet."""

    @abstractmethod
    def closing(self, usage: Usage) -> msgspec.Struct:
        """The last chunk, with the usage, for a client that asked for it."""

    @property
    def needs_scores(self) -> bool:
        """Whether openings need the log-probabilities of prompts."""
        return self._num_prompt_logprobs is not None

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
                yield self._line(opening)
        if delta.text or delta.logprobs or delta.finish_reason is not None or delta.kv_transfer_params is not None:
            chunk = self.chunk(choice, delta)
            if chunk is None:
                return
            if delta.kv_transfer_params is not None:
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

    def _line(self, chunk: Any) -> bytes:
        if self._include_usage and chunk.usage is msgspec.UNSET:
            chunk.usage = None  # as OpenAI's API: null in every chunk but the last
        return b"data: " + encode_json(chunk) + b"\n\n"
