"""Log-probabilities of prompts in answers: vLLM's `prompt_logprobs`, and what `echo` adds to `logprobs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headway.outputs import PromptPosition, TokenLogprob
from headway.server.answers.answer_bodies import CompletionLogprobs, PromptTokenLogprob

_LEAST = -9999.0  # stands for the logarithm of 0, which JSON cannot write


def entries(scores: Sequence[PromptPosition], most: int) -> list[dict[str, PromptTokenLogprob] | None]:
    """In vLLM's form: for each token, by token id, the token itself and the `most` likely ones; None for the first."""
    return [
        None
        if position is None
        else {
            str(token): PromptTokenLogprob(max(found.logprob, _LEAST), found.rank, found.decoded_token)
            for token, found in _shown(position, most)
        }
        for position in scores
    ]


def add_echo(logprobs: CompletionLogprobs, scores: Sequence[PromptPosition], most: int, text: str, first: str) -> None:
    """Begin `logprobs` with the tokens of a prompt. text: the prompt, as it is echoed. first: the text of its first
    token, which has no log-probability."""
    offset = 0
    for position in scores:
        logprobs.text_offset.append(offset)
        if position is None:
            piece, in_text = first, False
            logprobs.token_logprobs.append(None)
            logprobs.top_logprobs.append(None)
        else:
            own = next(iter(position.values()))
            piece, in_text = own.decoded_token, bool(own.bytes)
            logprobs.token_logprobs.append(max(own.logprob, _LEAST))
            top: dict[str, float] = {}
            for _, found in _shown(position, most):  # of tokens with the same text only the first has an entry
                top.setdefault(found.decoded_token, max(found.logprob, _LEAST))
            logprobs.top_logprobs.append(top)
        logprobs.tokens.append(piece)
        # A special token takes a place if the echo shows it: it does not if the tokenizer has added the token.
        if in_text or text.startswith(piece, offset):
            offset = min(offset + len(piece), len(text))


def _shown(position: dict[int, TokenLogprob], most: int) -> Iterator[tuple[int, TokenLogprob]]:
    """The token itself, which is the first entry, and the `most` likely ones."""
    return ((token, found) for i, (token, found) in enumerate(position.items()) if i == 0 or found.rank <= most)
