"""The form of answers in /v1/completions."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from headway.outputs import RequestDelta, RequestOutput, TokenLogprob
from headway.server.answer_bodies import Completion, CompletionChoice, CompletionLogprobs, Usage
from headway.server.chunks import ChunkFace, token_name


class CompletionFace(ChunkFace):
    """The form of a completion. echo: every choice begins with the text of its prompt."""

    def __init__(self, *, echo: bool, **common: Any) -> None:
        super().__init__(**common)
        self._echo = echo
        self._offsets: dict[int, int] = {}  # choice -> characters of its tokens so far

    def whole(self, outputs: list[RequestOutput], usage: Usage) -> Completion:
        choices = [
            CompletionChoice(
                number := position * self.n + answer.index,
                self._prompt_text(number) + answer.text,
                self._logprobs(number, answer.logprobs),
                answer.finish_reason,
                answer.stop_reason,
                answer.token_ids if self.with_token_ids else UNSET,
                self.prompts[position].token_ids if self.with_token_ids else UNSET,
            )
            for position, output in enumerate(outputs)
            for answer in output.outputs
        ]
        return self._completion(choices, usage)

    def opening(self, choice: int) -> Completion | None:
        text = self._prompt_text(choice)
        return self._completion([CompletionChoice(choice, text)]) if text else None

    def chunk(self, choice: int, delta: RequestDelta) -> Completion:
        logprobs = self._logprobs(choice, delta.logprobs)
        return self._completion(
            [CompletionChoice(choice, delta.text, logprobs, delta.finish_reason, delta.stop_reason)]
        )

    def show_prompt_ids(self, chunk: Completion, choice: int) -> None:
        chunk.choices[0].prompt_token_ids = self.prompts[choice // self.n].token_ids

    def closing(self, usage: Usage) -> Completion:
        return self._completion([], usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        completion = Completion(self.id, self.created, self.model, choices)
        if usage is not None:
            completion.usage = usage
        return completion

    def _prompt_text(self, choice: int) -> str:
        return (self.prompts[choice // self.n].text or "") if self._echo else ""

    def _logprobs(self, choice: int, positions: list[dict[int, TokenLogprob]] | None) -> CompletionLogprobs | None:
        if positions is None:
            return None
        offset = self._offsets.get(choice, 0)
        logprobs = CompletionLogprobs()
        for position in positions:
            sampled = next(iter(position.values()))  # the first entry is the token that was drawn
            names = [token_name(token_id, token, by_id=self.named_by_ids) for token_id, token in position.items()]
            logprobs.tokens.append(names[0])
            logprobs.token_logprobs.append(sampled.logprob)
            top: dict[str, float] = {}
            for name, token in zip(names, position.values()):  # of tokens of one name only the first has an entry
                top.setdefault(name, token.logprob)
            logprobs.top_logprobs.append(top)
            logprobs.text_offset.append(offset)
            if sampled.bytes:  # a token that the text does not show takes no place in it
                offset += len(sampled.decoded_token)
        self._offsets[choice] = offset
        return logprobs
