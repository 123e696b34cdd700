"""One answer in progress, and the deltas that are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from headway.client.detokenizer import Detokenizer, StopScanner
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
    """The common part of the answers of one request. live: the number of answers that have not ended.

    ends: of the answers that have ended, in the order of their ends: the reason, and the number of tokens.
    """

    request_id: str
    uids: tuple[int, ...]
    sampling: SamplingParams
    output: RequestOutput
    stream: bool
    live: int
    num_cached_tokens: int = 0
    ends: list[tuple[FinishReason, int]] = field(default_factory=list)


@dataclass(slots=True)
class OpenSequence:
    """One answer in progress. `token_ids`, `text` and `logprobs`: the part that is not yet in a delta.

    scanner: None without stop strings: then text is made once per delta. With stop strings text is made for each
        token, because a stop string ends the answer.
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
    text: str = ""
    num_given: int = 0
    last_time: float | None = None

    @property
    def num_tokens(self) -> int:
        """Output tokens so far."""
        return self.num_given + len(self.token_ids)

    def scan(self, piece: str) -> str | None:
        """Add text; returns the stop string that it completes, or None."""
        assert self.scanner is not None
        past_min_tokens = self.num_given + len(self.token_ids) > self.request.sampling.min_tokens
        text, stop = self.scanner.feed(piece, search=past_min_tokens)
        self.text += text
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
        text, self.text = self.text, ""
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
        )
