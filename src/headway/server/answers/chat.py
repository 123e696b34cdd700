"""The form of answers in /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from headway.client.answer_parser import AnswerDelta, AnswerParser, ToolCallDelta
from headway.outputs import CompletionOutput, RequestDelta, RequestOutput, TokenLogprob
from headway.request import FinishReason
from headway.server.answers.answer_bodies import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatTokenLogprob,
    Delta,
    Function,
    Message,
    ToolCall,
    TopLogprob,
    Usage,
)
from headway.server.answers.chunks import ChunkFace, token_name


class ChatFace(ChunkFace):
    """The form of a chat completion. top_logprobs: alternatives shown per token. new_parser: makes the parser of an
    answer."""

    def __init__(self, *, top_logprobs: int, new_parser: Callable[[], AnswerParser], **common: Any) -> None:
        super().__init__(**common)
        self._top_logprobs = top_logprobs
        self._new_parser = new_parser
        self._parsers: dict[int, AnswerParser] = {}  # of the choices of a stream

    def whole(self, outputs: list[RequestOutput], usage: Usage) -> ChatCompletion:
        choices = [self._choice(answer) for output in outputs for answer in output.outputs]
        body = ChatCompletion(self.id, self.created, self.model, choices, usage)
        body.prompt_logprobs = self._entries(outputs[0].prompt_logprobs)
        if self.with_token_ids:
            body.prompt_token_ids = self.prompts[0].token_ids
        return body

    def _choice(self, answer: CompletionOutput) -> ChatChoice:
        parser = self._new_parser()
        message = _message(parser.whole(answer.text))
        reason = finish_reason(answer.finish_reason, parser)
        logprobs = chat_logprobs(answer.logprobs, self._top_logprobs, by_ids=self.named_by_ids)
        token_ids = answer.token_ids if self.with_token_ids else UNSET
        return ChatChoice(answer.index, message, logprobs, reason, answer.stop_reason, token_ids)

    def opening(self, choice: int) -> ChatChunk:
        chunk = self._chunk([ChatChunkChoice(choice, Delta(role="assistant", content=""))])
        chunk.prompt_logprobs = self._entries(self._scores.get(0)) if choice == 0 else UNSET
        return chunk

    def chunks(self, choice: int, delta: RequestDelta) -> list[ChatChunk]:
        parser = self._parsers.get(choice)
        if parser is None:
            parser = self._parsers[choice] = self._new_parser()
        news = parser.feed(delta.text)
        if delta.finish_reason is not None:
            news.append(parser.finish())
        elif news.is_empty and not (delta.logprobs or self.with_token_ids) and delta.kv_transfer_params is None:
            return []  # the parser waits for more text
        choices = [ChatChunkChoice(choice, part) for part in _deltas(news)]
        choices[0].logprobs = chat_logprobs(delta.logprobs, self._top_logprobs, by_ids=self.named_by_ids)
        choices[-1].finish_reason = finish_reason(delta.finish_reason, parser)
        choices[-1].stop_reason = delta.stop_reason
        return [self._chunk([one]) for one in choices]

    def show_prompt_ids(self, chunk: ChatChunk, choice: int) -> None:
        chunk.prompt_token_ids = self.prompts[choice // self.n].token_ids

    def closing(self, usage: Usage) -> ChatChunk:
        chunk = self._chunk([])
        chunk.usage = usage
        return chunk

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(self.id, self.created, self.model, choices)


def chat_logprobs(
    positions: list[dict[int, TokenLogprob]] | None, num_top: int, *, by_ids: bool = False
) -> ChatLogprobs | None:
    """num_top: alternatives shown per token. by_ids: tokens are named by their ids."""
    if positions is None:
        return None
    content: list[ChatTokenLogprob] = []
    for position in positions:
        sampled_id, sampled = next(iter(position.items()))  # the first entry is the token that was drawn
        top = sorted(position.items(), key=lambda item: item[1].rank)[:num_top]
        content.append(
            ChatTokenLogprob(
                token_name(sampled_id, sampled, by_id=by_ids),
                sampled.logprob,
                list(sampled.bytes),
                [
                    TopLogprob(token_name(token_id, token, by_id=by_ids), token.logprob, list(token.bytes))
                    for token_id, token in top
                ],
            )
        )
    return ChatLogprobs(content)


def finish_reason(reason: FinishReason | None, parser: AnswerParser) -> str | None:
    """Why an answer ended, in the words of OpenAI's API: an answer that ended by itself and called tools ended for
    these, unless the client has named the tool."""
    if reason is FinishReason.STOP and parser.has_decided_to_call:
        return "tool_calls"
    return None if reason is None else str(reason)


def _message(answer: AnswerDelta) -> Message:
    content = None if answer.tool_calls and not answer.content else answer.content
    message = Message(content)
    if answer.reasoning:
        message.reasoning = message.reasoning_content = answer.reasoning
    if answer.tool_calls:
        message.tool_calls = [
            ToolCall(Function(call.arguments, call.name or ""), call.id or UNSET, "function")
            for call in answer.tool_calls
        ]
    return message


def _deltas(news: AnswerDelta) -> list[Delta]:
    """What is new, in at least one delta. Each has a part of one call at most, as clients look at the first alone."""
    deltas = [Delta()]
    if news.content:
        deltas[0].content = news.content
    if news.reasoning:
        deltas[0].reasoning = deltas[0].reasoning_content = news.reasoning
    for part in news.tool_calls:
        last = deltas[-1].tool_calls
        if last is UNSET:
            deltas[-1].tool_calls = [_part(part)]
        elif part.id is None and last[0].index == part.index:
            last[0].function.arguments += part.arguments
        else:
            deltas.append(Delta(tool_calls=[_part(part)]))
    return deltas


def _part(part: ToolCallDelta) -> ToolCall:
    if part.id is None:
        return ToolCall(Function(part.arguments), index=part.index)
    return ToolCall(Function(part.arguments, part.name or UNSET), part.id, "function", part.index)
