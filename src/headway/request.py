"""What a request is, on its way in (`SamplingParams`, `Request`) and on its way out (`RequestOutput`).

These records cross threads and processes, so they are plain data: no tensors, no callbacks, no references to engine
state. They import numpy and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
from numpy.typing import NDArray

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 64
MAX_N = 128
MAX_LOGIT_BIAS = 1024


class FinishReason(StrEnum):
    """Why a request ended. Every request ends with exactly one of these."""

    STOP = "stop"  # a stop token or a stop string
    LENGTH = "length"  # max_tokens or max_model_len
    ABORT = "abort"  # the client asked, or went away
    ERROR = "error"  # it could not be served; the message says why


class RequestStatus(IntEnum):
    """Where a request stands, as the writer sees it."""

    WAITING = 0  # queued, nothing computed
    RUNNING_PREFILL = 1  # has a slot; part of its known tokens is still to be computed
    RUNNING_DECODE = 2  # has a slot; computes one token a step
    PREEMPTED = 3  # gave up slot and blocks, keeps its place in the queue
    FINISHED = 4
    PREPARING = 5  # a preprocess job works on it; its place in the queue is kept
    RESERVED = 6  # holds slot and blocks, computes nothing yet: P before its D has agreed, D before the KV has come
    SENDING = 7  # P: all is computed, the KV is on its way to D


class RequestError(ValueError):
    """The request cannot be accepted as it is; the message names the value and the limit. HTTP 400."""


class DuplicateRequestError(RequestError):
    """A request of this id is still in the engine. HTTP 409."""


class QueueFullError(RuntimeError):
    """The engine holds as many requests as it may; try again later. HTTP 503 with Retry-After."""


class EnginePausedError(RuntimeError):
    """The engine is paused and takes no requests until it is resumed. HTTP 503 with Retry-After."""


class EngineDeadError(RuntimeError):
    """The engine has stopped and takes no more requests. HTTP 503."""


class QueryError(RuntimeError):
    """A query that cannot be answered: asked of an engine of the wrong role, or by the thread that must answer it."""


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise RequestError(f"{name} must be a number, got {value!r}")


def _integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise RequestError(f"{name} must be an integer, got {value!r}")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    _number(name, value)
    if not low <= value <= high:  # also refuses NaN
        raise RequestError(f"{name} must be in [{low:g}, {high:g}], got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when to stop. Names and defaults follow vLLM's.

    n: how many answers to the same prompt.
    temperature: 0 is greedy.
    top_k: 0 or -1 keeps the whole vocabulary.
    seed: the same seed, prompt and parameters give the same tokens, whatever else runs and however often the
        request is preempted; None draws a fresh one.
    max_tokens: None means as many as `max_model_len` allows.
    min_tokens: stop tokens are masked until so many tokens are generated.
    logprobs: top alternatives to report per token (0: only the sampled one); None reports nothing.
    logit_bias: token id -> value added to its logit, -100 to 100.

    Raises RequestError (a ValueError) that names the value and the limit.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None

    def __post_init__(self) -> None:
        stop = self.stop if self.stop is not None else ()
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        for name in ("n", "top_k", "min_tokens"):
            _integer(name, getattr(self, name))
        for name in ("seed", "max_tokens", "logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name))
        for name in ("top_p", "repetition_penalty"):
            _number(name, getattr(self, name))
        _in_range("n", self.n, 1, MAX_N)
        _in_range("temperature", self.temperature, 0, 100)
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < -1:
            raise RequestError(f"top_k must be -1 or 0 (off) or at least 1, got {self.top_k}")
        _in_range("min_p", self.min_p, 0, 1)
        _in_range("presence_penalty", self.presence_penalty, -2, 2)
        _in_range("frequency_penalty", self.frequency_penalty, -2, 2)
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise RequestError(f"repetition_penalty must be above 0, got {self.repetition_penalty}")
        if self.seed is not None:
            _in_range("seed", self.seed, -(2**63), 2**63 - 1)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.min_tokens < 0:
            raise RequestError(f"min_tokens must be at least 0, got {self.min_tokens}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})")
        if self.logprobs is not None:
            _in_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}")
        if any(not s for s in self.stop):
            raise RequestError("stop must not contain an empty string")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise RequestError(f"stop_token_ids takes at most {MAX_STOP_TOKEN_IDS} ids, got {len(self.stop_token_ids)}")
        if self.logit_bias is not None:
            if len(self.logit_bias) > MAX_LOGIT_BIAS:
                raise RequestError(f"logit_bias takes at most {MAX_LOGIT_BIAS} tokens, got {len(self.logit_bias)}")
            for token, bias in self.logit_bias.items():
                _in_range(f"logit_bias[{token}]", bias, -100, 100)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of a prompt that stand for one image or video: positions `start` to `start + length`.

    No chunk of a prefill may cut it. Its KV depends on what it shows, hence on the digest.

    digest: strong digest of the contents, e.g. sha256; equal ones share encoder output and cached KV.
    num_encoder_tokens: what its encoder output takes of the encoder cache; 0 if there is nothing to encode.
    """

    start: int
    length: int
    digest: bytes
    num_encoder_tokens: int = 0

    @property
    def end(self) -> int:
        """The position after it."""
        return self.start + self.length


@dataclass(slots=True, kw_only=True)
class Request:
    """One sequence to generate, as the core takes it. Made at the door; immutable from there on.

    uid: the engine's own id, unique for ever; late messages and results name requests by it.
    request_id: the caller's id, unique among the requests in the engine.
    prompt: int32 [num_prompt_tokens], read-only.
    max_tokens: output tokens, already clamped to what `max_model_len` leaves.
    stop_token_ids: every token that ends the request (end-of-sequence tokens included unless ignored).
    priority: lower is served first.
    cache_salt: requests share cached prefixes only with requests of the same salt.
    arrival_time: seconds, on the clock of whoever drives the scheduler.
    spans: parts of the prompt that must not be cut, in order, none overlapping another.
    preprocess: what the engine's preprocessor makes prompt and spans from, opaque here; None: nothing to prepare.
    """

    uid: int
    request_id: str
    prompt: NDArray[np.int32]
    sampling: SamplingParams
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    priority: int = 0
    cache_salt: str | None = None
    arrival_time: float = 0.0
    spans: tuple[Span, ...] = ()
    preprocess: bytes | None = None


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
