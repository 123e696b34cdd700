"""The streams of OpenAI's completions and chat completions: lines of data, each a chunk of one choice, and [DONE]."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import msgspec

from headway.outputs import RequestDelta
from headway.server.answer_bodies import Usage
from headway.server.errors import ApiError
from headway.server.generate import Face, encode_json

_DONE = b"data: [DONE]\n\n"


class ChunkFace(Face):
    """include_usage: a last chunk has the usage. continuous_usage: every chunk has the usage so far."""

    def __init__(self, *, include_usage: bool = False, continuous_usage: bool = False, **common: Any) -> None:
        super().__init__(**common)
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

    def events(self, choice: int, delta: RequestDelta) -> Iterator[bytes]:
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
