"""The form of answers in /v1/messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from headway.client.answer_parser import AnswerDelta, AnswerParser
from headway.outputs import RequestDelta, RequestOutput
from headway.request import FinishReason
from headway.server.answers import answer_bodies
from headway.server.answers.generate import Face, event
from headway.server.errors import ApiError
from headway.server.messages_api.answer_blocks import AnswerBlocks, Block


class Usage(Struct):
    """input_tokens: of the prompt that were not in the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class Message(Struct):
    id: str
    model: str
    content: list[Block]
    usage: Usage
    stop_reason: str | None = None
    stop_sequence: str | None = None
    kv_transfer_params: dict[str, Any] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class TokenCount(Struct):
    """The answer of /v1/messages/count_tokens."""

    input_tokens: int


class MessagesFace(Face):
    """The form of a message: one answer, in content blocks. parser: of the answer."""

    def __init__(self, *, parser: AnswerParser, **common: Any) -> None:
        super().__init__(**common, n=1)
        self._parser = parser
        self._answer = AnswerBlocks()
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None

    def whole(self, outputs: list[RequestOutput], usage: answer_bodies.Usage) -> Message:
        (answer,) = outputs[0].outputs
        for _ in self._take(self._parser.whole(answer.text), answer.finish_reason, answer.stop_reason):
            pass
        return self._message(_usage(usage))

    def begin(self) -> Iterator[bytes]:
        opening = _usage(self.counts.usage())
        opening.output_tokens = 0
        yield _event("message_start", message=self._message(opening))
        yield _event("ping")

    def events(self, choice: int, delta: RequestDelta) -> Iterator[bytes]:
        assert choice == 0, "a message has one answer"
        if delta.kv_transfer_params is not None:
            yield _event("ping", kv_transfer_params=delta.kv_transfer_params)  # D can read while P computes
        news = self._parser.feed(delta.text)
        if delta.finish_reason is not None:
            news.append(self._parser.finish())
        for kind, fields in self._take(news, delta.finish_reason, delta.stop_reason):
            yield _event(kind, **fields)

    def end(self) -> Iterator[bytes]:
        stop = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence}
        yield _event("message_delta", delta=stop, usage=_usage(self.counts.usage()))
        yield _event("message_stop")

    def failed(self, error: ApiError) -> Iterator[bytes]:
        yield event("error", error.anthropic_body())

    def _take(
        self, news: AnswerDelta, reason: FinishReason | None, stop_reason: int | str | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of what is new. reason: the answer ends with it."""
        yield from self._answer.add(news)
        if reason is None:
            return
        yield from self._answer.close()
        self._stop_sequence = stop_reason if isinstance(stop_reason, str) else None
        self._stop_reason = self._why(reason)

    def _why(self, reason: FinishReason) -> str:
        if reason is FinishReason.LENGTH:
            return "max_tokens"
        if reason is FinishReason.ABORT:
            return "pause_turn"  # the server was paused: the conversation can go on from here
        if self._stop_sequence is not None:
            return "stop_sequence"
        return "tool_use" if self._answer.uses_tools else "end_turn"

    def _message(self, usage: Usage) -> Message:
        return Message(self.id, self.model, self._answer.blocks, usage, self._stop_reason, self._stop_sequence)


def _usage(usage: answer_bodies.Usage) -> Usage:
    cached = usage.prompt_tokens_details.cached_tokens
    return Usage(usage.prompt_tokens - cached, usage.completion_tokens, cached)


def _event(kind: str, **fields: Any) -> bytes:
    return event(kind, {"type": kind, **fields})
