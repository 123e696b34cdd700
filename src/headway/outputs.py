"""What a request is on its way out: the whole answer, or what is new of it while it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headway.request import FinishReason


@dataclass(slots=True)
class TokenLogprob:
    """Log-probability of one token at one position; rank 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str = ""


@dataclass(slots=True)
class CompletionOutput:
    """One of a request's `n` answers. `logprobs[i]` maps token id -> TokenLogprob for output token i."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the token id or the string that stopped it; None for end-of-sequence
    logprobs: list[dict[int, TokenLogprob]] | None = None
    cumulative_logprob: float | None = None
    error: str | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request in seconds, on the caller's `time.monotonic` clock."""

    arrival_time: float = 0.0
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """What the caller of a request gets: the whole answer, or its state so far when streaming."""

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    num_cached_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)


@dataclass(slots=True)
class RequestDelta:
    """What is new of one answer of a streaming request since its delta before.

    index: which of the n answers.
    text: may be empty while tokens come: half a character, or text that may turn out to start a stop string.
    logprobs: one per token of `token_ids`; None if not asked for.
    finish_reason, stop_reason, error: set in the answer's last delta, see `CompletionOutput`.
    num_tokens: output tokens of this answer so far, these included.
    finished: this is the request's last delta; no answer has anything to come.
    metrics: the request's, shared by its deltas; for reading.
    """

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, TokenLogprob]] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    error: str | None
    num_tokens: int
    num_cached_tokens: int
    finished: bool
    metrics: RequestMetrics
