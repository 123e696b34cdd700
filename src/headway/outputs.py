"""The records of an answer on its way to the caller: complete, or delta by delta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.request import FinishReason


@dataclass(slots=True)
class TokenLogprob:
    """Log-probability of one token at one position; rank 1 is the most likely.

    decoded_token: the text that the token completes at this position; empty if the token ends inside a character. A
        token that the text does not show (a special token, the stop token) has its name here, and no bytes.
    bytes: what the token adds to the text in UTF-8; a part of a character, if the token is one.

    The bytes of the tokens of an answer, joined, are its text.
    """

    logprob: float
    rank: int
    decoded_token: str = ""
    bytes: bytes = b""


PromptPosition = dict[int, TokenLogprob] | None
"""What is said of a position of a prompt, by token id: its own token first, then the most likely ones."""


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` answers of a request. `logprobs[i]` maps token ids to TokenLogprob, for output token i."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the token id or string that ended the answer; None for end-of-sequence
    logprobs: list[dict[int, TokenLogprob]] | None = None
    cumulative_logprob: float | None = None
    error: str | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request in seconds, on the caller's `time.monotonic` clock. started_time: it left the queue."""

    arrival_time: float = 0.0
    started_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """The output of one prompt: its `n` answers.

    num_cached_tokens: prompt tokens found in the prefix cache.
    kv_transfer_params: what another engine needs to read the KV of the prompt, if that is lent.
    prompt_logprobs: one entry per token of the prompt, None for the first. None: not asked for, or the request ended
        before its prompt was computed. A list from `LLM`, else `PromptScores`.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    num_cached_tokens: int = 0
    kv_transfer_params: dict[str, Any] | None = None
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    prompt_logprobs: Sequence[PromptPosition] | None = None


@dataclass(slots=True)
class RequestDelta:
    """The new part of one answer of a streaming request, since the answer's last delta.

    index: of the answer, 0 to n - 1.
    text: may be empty although tokens have come: the last character is incomplete, or may start a stop string.
    logprobs: one entry per token of `token_ids`; None if not asked for.
    finish_reason, stop_reason, error: set in the last delta of an answer, see `CompletionOutput`.
    num_tokens: output tokens of this answer so far, with the tokens of this delta.
    finished: this is the last delta of the request; all its answers are complete.
    metrics: of the request; all its deltas share this object. Do not change it.
    kv_transfer_params: what another engine needs to read the KV of the prompt, while it is computed. In one delta, the
        first, of a request that lends.
    prompt_logprobs: as in `RequestOutput`; in one delta of answer 0, the first with an output token or an end.
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
    kv_transfer_params: dict[str, Any] | None = None
    prompt_logprobs: Sequence[PromptPosition] | None = None

    def append(self, later: RequestDelta) -> None:
        """Take in the next delta of the same answer: this is the new part of both from here on."""
        self.text += later.text
        self.token_ids += later.token_ids
        if self.logprobs is not None and later.logprobs is not None:
            self.logprobs += later.logprobs
        self.finish_reason, self.stop_reason, self.error = later.finish_reason, later.stop_reason, later.error
        self.num_tokens, self.num_cached_tokens = later.num_tokens, later.num_cached_tokens
        self.finished = later.finished
        self.kv_transfer_params = self.kv_transfer_params or later.kv_transfer_params
        if self.prompt_logprobs is None:
            self.prompt_logprobs = later.prompt_logprobs
