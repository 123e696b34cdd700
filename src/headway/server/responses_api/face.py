"""The form of answers in /v1/responses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from headway.client.answer_parser import AnswerDelta, AnswerParser
from headway.outputs import RequestDelta, RequestOutput, TokenLogprob
from headway.request import FinishReason
from headway.sampling import SamplingParams
from headway.server.answers import answer_bodies
from headway.server.answers.chat import chat_logprobs
from headway.server.answers.generate import Face, event
from headway.server.errors import ApiError
from headway.server.responses_api.answer_items import AnswerItems, Item
from headway.server.responses_api.body import ResponsesRequest


class InputTokensDetails(Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    """reasoning_tokens: the share of the reasoning in the text, in tokens."""

    reasoning_tokens: int


class Usage(Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Struct):
    reason: str


class ResponseError(Struct):
    message: str
    code: Literal["server_error"] = "server_error"


class Response(Struct):
    """A response. What the request has asked for is repeated in it."""

    id: str
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    output: list[Item]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    user: str | None
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    usage: Usage | None = None
    kv_transfer_params: dict[str, Any] | UnsetType = UNSET
    background: bool = False
    previous_response_id: None = None
    store: bool = False
    truncation: str = "disabled"
    object: Literal["response"] = "response"


class ResponsesFace(Face):
    """The form of a response: one answer, in items. parser: of the answer."""

    def __init__(
        self, *, body: ResponsesRequest, sampling: SamplingParams, parser: AnswerParser, **common: Any
    ) -> None:
        super().__init__(**common, n=1)
        self._parser = parser
        self._top_logprobs = body.top_logprobs or 0
        self._answer = AnswerItems()
        self._number = 0  # of the next event
        self._num_characters = self._num_reasoning = 0
        self._reason: FinishReason | None = None
        self._response = _opened(self, body, sampling, self._answer.items)

    def whole(self, outputs: list[RequestOutput], usage: answer_bodies.Usage) -> Response:
        (answer,) = outputs[0].outputs
        self._num_characters = len(answer.text)
        for _ in self._take(self._parser.whole(answer.text), answer.logprobs, answer.finish_reason):
            pass
        return self._ended(usage)

    def begin(self) -> Iterator[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response)

    def events(self, choice: int, delta: RequestDelta) -> Iterator[bytes]:
        assert choice == 0, "a response has one answer"
        if delta.kv_transfer_params is not None:
            self._response.kv_transfer_params = delta.kv_transfer_params
            yield self._event("response.in_progress", response=self._response)  # D can read while P computes
        news = self._parser.feed(delta.text)
        if delta.finish_reason is not None:
            news.append(self._parser.finish())
        self._num_characters += len(delta.text)
        for kind, fields in self._take(news, delta.logprobs, delta.finish_reason):
            yield self._event(kind, **fields)

    def end(self) -> Iterator[bytes]:
        response = self._ended(self.counts.usage())
        yield self._event(f"response.{response.status}", response=response)

    def failed(self, error: ApiError) -> Iterator[bytes]:
        self._response.status = "failed"
        self._response.error = ResponseError(error.message)
        yield self._event("response.failed", response=self._response)

    def _take(
        self, news: AnswerDelta, logprobs: list[dict[int, TokenLogprob]] | None, reason: FinishReason | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of what is new. reason: the answer ends with it."""
        self._num_reasoning += len(news.reasoning)
        tokens = chat_logprobs(logprobs, self._top_logprobs)
        yield from self._answer.add(news, None if tokens is None else list(tokens.content))
        if reason is not None:
            self._reason = reason
            if not self._answer.items:
                yield from self._answer.open_message()  # an answer of nothing is an empty message
            yield from self._answer.close("completed" if reason is FinishReason.STOP else "incomplete")

    def _ended(self, usage: answer_bodies.Usage) -> Response:
        response = self._response
        if self._reason is FinishReason.STOP:
            response.status = "completed"
            response.completed_at = int(time.time())
        else:
            response.status = "incomplete"
            reason = "max_output_tokens" if self._reason is FinishReason.LENGTH else str(self._reason)
            response.incomplete_details = IncompleteDetails(reason)
        share = self._num_reasoning / max(1, self._num_characters)
        response.usage = Usage(
            usage.prompt_tokens,
            InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            usage.completion_tokens,
            OutputTokensDetails(round(share * usage.completion_tokens)),
            usage.total_tokens,
        )
        return response

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event(kind, {"type": kind, "sequence_number": number, **fields})


def _opened(face: ResponsesFace, body: ResponsesRequest, sampling: SamplingParams, output: list[Item]) -> Response:
    text, reasoning, choice = body.text, body.reasoning, body.tool_choice
    form = {"type": "text"} if text is None or text.format is None else text.format.shown()
    return Response(
        id=face.id,
        created_at=face.created,
        model=face.model,
        status="in_progress",
        output=output,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning={"effort": None, "summary": None} if reasoning is None else reasoning.model_dump(),
        temperature=sampling.temperature,
        text={"format": form},
        tool_choice="auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
        tools=[tool.model_dump() for tool in body.tools or ()],
        top_logprobs=body.top_logprobs or 0,
        top_p=sampling.top_p,
        user=body.user,
        truncation=body.truncation or "disabled",
    )
