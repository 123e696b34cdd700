"""One answer in progress, and the deltas that are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from headway.client.detokenizer import Detokenizer
from headway.client.prompt_scores import PromptScores
from headway.client.repetition_scanner import RepetitionScanner
from headway.client.stop_scanner import StopScanner
from headway.outputs import RequestDelta, RequestOutput, TokenLogprob
from headway.request import FinishReason
from headway.sampling import SamplingParams
from headway.scheduler.effects import RequestEnd


class Ending(NamedTuple):
    """How an answer ended."""

    reason: FinishReason | None
    stop_reason: int | str | None = None
    error: str | None = None


ONGOING = Ending(None)


@dataclass(slots=True)
class OpenRequest:
    """The common part of the answers of one request.

    live: the number of answers that have not ended.
    stop_tokens: hidden special tokens whose text is a stop string. The text of the answer does not show these.
    ends: of the answers that have ended, in the order of their ends: the reason, and the number of tokens.
    scores: log-probabilities of the prompt, as far as they have come; None: not asked for, or in a delta already.
    """

    request_id: str
    uids: tuple[int, ...]
    sampling: SamplingParams
    output: RequestOutput
    stream: bool
    live: int
    num_cached_tokens: int = 0
    stop_tokens: dict[int, str] = field(default_factory=dict)
    ends: list[tuple[FinishReason, int]] = field(default_factory=list)
    scores: PromptScores | None = None

    @property
    def wants_tokens(self) -> bool:
        """Whether the caller wants an answer at all: the engine computes one token at least."""
        return self.sampling.max_tokens != 0

    def take_scores(self) -> PromptScores | None:
        """The log-probabilities of the prompt, once, if they are complete."""
        scores = self.scores
        if scores is None or not scores.complete:
            return None
        self.scores = None
        return scores


@dataclass(slots=True)
class OpenSequence:
    """One answer in progress. `token_ids`, `pieces` and `logprobs`: the part that is not yet in a delta.

    pieces: of the text. scanner: None without stop strings. repetition: None unless it was asked for.
    num_given: tokens in the deltas so far.
    last_time: seconds; when the last tokens came.
    """

    request: OpenRequest
    index: int
    detokenizer: Detokenizer
    scanner: StopScanner | None
    logprobs: list[dict[int, TokenLogprob]] | None
    cumulative_logprob: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    num_given: int = 0
    repetition: RepetitionScanner | None = None
    last_time: float | None = None

    @property
    def num_tokens(self) -> int:
        """Output tokens so far."""
        return self.num_given + len(self.token_ids)

    @property
    def past_min_tokens(self) -> bool:
        """Whether a stop string may end the answer at its last token."""
        return self.num_tokens > self.request.sampling.min_tokens

    def repeats(self, token: int) -> bool:
        """Whether the answer repeats itself with its last token, this one, and may end."""
        if self.repetition is None:
            return False
        return self.repetition.feed(token) and self.num_tokens >= self.request.sampling.min_tokens

    def stop_of(self, token: int) -> str | None:
        """The stop string that this token is, if the text does not show it and it ends the answer now."""
        return self.request.stop_tokens.get(token) if self.past_min_tokens else None

    def add_text(self, piece: str) -> str | None:
        """Add text; returns the stop string that it completes, or None."""
        if self.scanner is None:
            self.pieces.append(piece)
            return None
        text, stop = self.scanner.feed(piece, search=self.past_min_tokens)
        self.pieces.append(text)
        return stop

    def finish_text(self) -> str | None:
        """Add the rest of the text, when no more tokens come; returns the stop string that it completes, or None."""
        stop = self.add_text(self.detokenizer.finish())
        if stop is None and self.scanner is not None:
            self.pieces.append(self.scanner.rest())
        return stop

    def hides_last(self, end: RequestEnd) -> bool:
        """Whether the last token is a stop token that is left out of the text."""
        return (
            end.stop_token is not None
            and self.token_ids[-1:] == [end.stop_token]
            and not self.request.sampling.include_stop_str_in_output
        )

    def take_delta(self, ending: Ending) -> RequestDelta:
        """A delta of everything since the last one."""
        request = self.request
        token_ids, self.token_ids = self.token_ids, []
        text = "".join(self.pieces)
        self.pieces.clear()
        logprobs = self.logprobs
        if logprobs is not None:
            self.logprobs = []
        self.num_given += len(token_ids)
        return RequestDelta(
            request_id=request.request_id,
            index=self.index,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=ending.reason,
            stop_reason=ending.stop_reason,
            error=ending.error,
            num_tokens=self.num_given,
            num_cached_tokens=request.num_cached_tokens,
            finished=not request.live,
            metrics=request.output.metrics,
            prompt_logprobs=request.take_scores() if self.index == 0 else None,
        )
