"""The form of answers in /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from headway.outputs import RequestDelta, RequestOutput, TokenLogprob
from headway.server.answer_bodies import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatTokenLogprob,
    Delta,
    Message,
    TopLogprob,
    Usage,
)
from headway.server.chunks import ChunkFace


class ChatFace(ChunkFace):
    """The form of a chat completion. top_logprobs: alternatives shown per token."""

    def __init__(self, *, top_logprobs: int, **common: Any) -> None:
        super().__init__(**common)
        self._top_logprobs = top_logprobs

    def whole(self, outputs: list[RequestOutput], usage: Usage) -> ChatCompletion:
        choices = [
            ChatChoice(
                answer.index,
                Message(answer.text),
                self._logprobs(answer.logprobs),
                answer.finish_reason,
                answer.stop_reason,
            )
            for output in outputs
            for answer in output.outputs
        ]
        return ChatCompletion(self.id, self.created, self.model, choices, usage)

    def opening(self, choice: int) -> ChatChunk:
        return self._chunk([ChatChunkChoice(choice, Delta(role="assistant", content=""))])

    def chunk(self, choice: int, delta: RequestDelta) -> ChatChunk:
        content = Delta(content=delta.text) if delta.text else Delta()
        logprobs = self._logprobs(delta.logprobs)
        return self._chunk([ChatChunkChoice(choice, content, logprobs, delta.finish_reason, delta.stop_reason)])

    def closing(self, usage: Usage) -> ChatChunk:
        chunk = self._chunk([])
        chunk.usage = usage
        return chunk

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(self.id, self.created, self.model, choices)

    def _logprobs(self, positions: list[dict[int, TokenLogprob]] | None) -> ChatLogprobs | None:
        if positions is None:
            return None
        content: list[ChatTokenLogprob] = []
        for position in positions:
            sampled = next(iter(position.values()))  # the first entry is the token that was drawn
            top = sorted(position.values(), key=lambda token: token.rank)[: self._top_logprobs]
            content.append(
                ChatTokenLogprob(
                    sampled.decoded_token,
                    sampled.logprob,
                    list(sampled.bytes),
                    [TopLogprob(token.decoded_token, token.logprob, list(token.bytes)) for token in top],
                )
            )
        return ChatLogprobs(content)
