"""The form of answers in /v1/completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import UNSET

from headway.outputs import PromptPosition, RequestDelta, RequestOutput, TokenLogprob
from headway.server.answers.answer_bodies import Completion, CompletionChoice, CompletionLogprobs, Usage
from headway.server.answers.chunks import ChunkFace, token_name
from headway.server.answers.prompt_logprobs import add_echo


class CompletionFace(ChunkFace):
    """The form of a completion. echo: every choice begins with the text of its prompt. echo_logprobs: and with the
    log-probabilities of its tokens, and of so many alternatives. token_text: the text of a token by itself."""

    def __init__(
        self,
        *,
        echo: bool,
        echo_logprobs: int | None = None,
        token_text: Callable[[int], str],
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self._echo = echo
        self._echo_logprobs = echo_logprobs
        self._token_text = token_text
        self._offsets: dict[int, int] = {}  # choice -> characters of its tokens so far

    def whole(self, outputs: list[RequestOutput], usage: Usage) -> Completion:
        choices = [
            CompletionChoice(
                number := position * self.n + answer.index,
                self._prompt_text(number) + answer.text,
                self._logprobs(number, answer.logprobs, output.prompt_logprobs),
                answer.finish_reason,
                answer.stop_reason,
                self._entries(output.prompt_logprobs),
                answer.token_ids if self.with_token_ids else UNSET,
                self.prompts[position].token_ids if self.with_token_ids else UNSET,
            )
            for position, output in enumerate(outputs)
            for answer in output.outputs
        ]
        return self._completion(choices, usage)

    def opening(self, choice: int) -> Completion | None:
        text, scores = self._prompt_text(choice), self._scores.get(choice // self.n)
        if not text and scores is None:
            return None
        logprobs = None if self._echo_logprobs is None else self._logprobs(choice, [], scores)
        return self._completion([CompletionChoice(choice, text, logprobs, prompt_logprobs=self._entries(scores))])

    def chunks(self, choice: int, delta: RequestDelta) -> list[Completion]:
        logprobs = self._logprobs(choice, delta.logprobs)
        news = CompletionChoice(choice, delta.text, logprobs, delta.finish_reason, delta.stop_reason)
        return [self._completion([news])]

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

    @property
    def needs_scores(self) -> bool:
        return super().needs_scores or self._echo_logprobs is not None

    def _logprobs(
        self,
        choice: int,
        positions: list[dict[int, TokenLogprob]] | None,
        scores: Sequence[PromptPosition] | None = None,
    ) -> CompletionLogprobs | None:
        """scores: of the prompt, with which the log-probabilities of the choice begin, if it is echoed with them."""
        if positions is None:
            return None
        text = self._prompt_text(choice)
        offset = self._offsets.get(choice, len(text))
        logprobs = CompletionLogprobs()
        if scores is not None and self._echo_logprobs is not None:
            first = self._token_text(self.prompts[choice // self.n].token_ids[0])
            add_echo(logprobs, scores, self._echo_logprobs, text, first)
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
