"""How conversations become prompts, and how answers look in /v1/chat/completions."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from headway.errors import RequestError
from headway.outputs import RequestDelta, RequestOutput, TokenLogprob
from headway.server.generate import Face
from headway.server.protocol import Conversation
from headway.server.responses import (
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """The conversation as the model's chat template writes it. Raises RequestError if it does not."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise RequestError("the model has no chat template: use /v1/completions")
    extra = conversation.chat_template_kwargs or {}
    for name in extra:
        if name in inspect.signature(tokenizer.apply_chat_template).parameters:
            raise RequestError(f"chat_template_kwargs must not set {name!r}")
    try:
        text = tokenizer.apply_chat_template(
            [message.for_template() for message in conversation.messages],
            tokenize=False,
            add_generation_prompt=conversation.add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            **extra,
        )
    except (TemplateError, TypeError, ValueError) as error:
        # What a template refuses (two messages of one role in a row, no system role) it says by raising.
        raise RequestError(f"the chat template does not take this conversation: {error}") from error
    return str(text)


class ChatFace(Face):
    """top_logprobs: alternatives shown per token."""

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
            top = sorted(position.values(), key=lambda one: one.rank)[: self._top_logprobs]
            content.append(
                ChatTokenLogprob(
                    sampled.decoded_token,
                    sampled.logprob,
                    _bytes(sampled),
                    [TopLogprob(one.decoded_token, one.logprob, _bytes(one)) for one in top],
                )
            )
        return ChatLogprobs(content)


def _bytes(token: TokenLogprob) -> list[int]:
    return list(token.decoded_token.encode())
