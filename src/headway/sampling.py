"""Sampling parameters: how the next token is chosen, and when an answer stops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headway.errors import ContextLengthError, RequestError
from headway.structured_outputs import StructuredOutputs

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 64
MAX_N = 128
MAX_LOGIT_BIAS = 1024

# The least and the most of each number; None: no most. The documentation of the HTTP API says the same.
LIMITS: dict[str, tuple[float, float | None]] = {
    "n": (1, MAX_N),
    "temperature": (0, 100),
    "top_k": (-1, None),
    "min_p": (0, 1),
    "seed": (-(2**63), 2**63 - 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.001, 1000),
    "logit_bias": (-100, 100),
    "max_tokens": (1, None),
    "min_tokens": (0, None),
    "logprobs": (0, MAX_LOGPROBS),
}


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise RequestError(f"{name} must be a number, got {value!r}")


def _integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise RequestError(f"{name} must be an integer, got {value!r}")


def _in_range(name: str, value: float, what: str | None = None) -> None:
    """what: what the message calls it."""
    _number(name, value)
    low, high = LIMITS[name]
    if high is None and value < low:
        raise RequestError(f"{what or name} must be at least {low:g}, got {value}")
    if high is not None and not low <= value <= high:  # also refuses NaN
        raise RequestError(f"{what or name} must be in [{low:g}, {high:g}], got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when to stop. Names and defaults follow vLLM's.

    n: answers to the same prompt.
    temperature: 0 is greedy.
    top_k: 0 or -1 keeps the whole vocabulary.
    seed: the same seed, prompt and parameters give the same tokens, whatever else runs and however often the
        request is preempted; None draws a fresh seed.
    max_tokens: None means as many as `max_model_len` allows.
    min_tokens: stop tokens are masked until this many tokens are generated.
    logprobs: top alternatives to report per token (0: only the sampled one); None reports nothing.
    logit_bias: token id -> value added to its logit, -100 to 100.
    structured_outputs: the form that the answer must have; None: any.

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
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        stop = self.stop if self.stop is not None else ()
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        self._check_choice_of_tokens()
        self._check_length()
        self._check_lists()
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputs):
            raise RequestError(
                f"structured_outputs must be StructuredOutputs, got {type(self.structured_outputs).__name__}"
            )

    def most_tokens(self, prompt_tokens: int, max_model_len: int) -> int:
        """The most output tokens after a prompt of so many. Raises ContextLengthError if
        `max_model_len` leaves none, RequestError if it leaves fewer than `min_tokens`."""
        left = max_model_len - prompt_tokens
        if left < 1:
            raise ContextLengthError.of(
                max_model_len,
                f"the prompt has {prompt_tokens} tokens, and at least 1 must be left for the output: shorten it",
            )
        most = left if self.max_tokens is None else min(self.max_tokens, left)
        if self.min_tokens > most:
            raise RequestError(f"min_tokens is {self.min_tokens}, but at most {most} tokens can be generated")
        return most

    def _check_choice_of_tokens(self) -> None:
        for name in ("n", "top_k", "min_tokens"):
            _integer(name, getattr(self, name))
        for name in ("seed", "max_tokens", "logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name))
        _number("top_p", self.top_p)
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be in (0, 1], got {self.top_p}")
        for name in ("n", "temperature", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
            _in_range(name, getattr(self, name))
        if self.top_k < LIMITS["top_k"][0]:
            raise RequestError(f"top_k must be -1 or 0 (off) or at least 1, got {self.top_k}")
        for name in ("seed", "logprobs"):
            if getattr(self, name) is not None:
                _in_range(name, getattr(self, name))

    def _check_length(self) -> None:
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens)
        _in_range("min_tokens", self.min_tokens)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})")

    def _check_lists(self) -> None:
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
                _in_range("logit_bias", bias, f"logit_bias[{token}]")
