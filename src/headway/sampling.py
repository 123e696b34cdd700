"""Sampling parameters: how the next token is chosen, and when an answer stops."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from headway.errors import ContextLengthError, RequestError
from headway.repetition_detection import RepetitionDetectionParams
from headway.structured_outputs import StructuredOutputs
from headway.thinking_tokens import ThinkingTokens

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 64
MAX_N = 128
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 128
MAX_BAD_WORD = 128  # characters of a bad word
MAX_BAD_SEQUENCES = 256
MAX_BAD_SEQUENCE = 32  # tokens of a bad sequence
MAX_BAD_TOKENS = 2048  # tokens of all bad sequences
MAX_ALLOWED_TOKEN_IDS = 16_384

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
    "max_tokens": (0, None),
    "min_tokens": (0, None),
    "thinking_token_budget": (-1, None),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
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
    max_tokens: None means as many as `max_model_len` allows; 0: the prompt is computed, and the answer is empty.
    min_tokens: stop tokens are masked until this many tokens are generated.
    logprobs: top alternatives to report per token (0: only the sampled one); None reports nothing.
    prompt_logprobs: the same for the tokens of the prompt. The first has none: it follows nothing.
    logit_bias: token id -> value added to its logit, -100 to 100.
    bad_words: words that the answer does not have, at the start of a text and after a space. A client with the model's
        tokenizer makes bad token sequences of them (`client/bad_words.py`).
    bad_token_sequences: the last token of a sequence is never drawn where the answer ends with the tokens before it.
        Where nothing else is left to draw, it is drawn all the same.
    allowed_token_ids: no other tokens are drawn; None: all are.
    thinking_token_budget: after so many tokens of thinking its end is written. None or -1: no limit. It needs
        `thinking`: the tokens between which the model thinks.
    repetition_detection: when an answer that repeats itself ends.
    spaces_between_special_tokens: changes nothing: a tokenizer's own text has no such spaces.
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
    prompt_logprobs: int | None = None
    bad_words: tuple[str, ...] = ()
    bad_token_sequences: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    thinking_token_budget: int | None = None
    thinking: ThinkingTokens | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    spaces_between_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        stop = self.stop if self.stop is not None else ()
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        object.__setattr__(self, "bad_words", _bad_words(self.bad_words))
        object.__setattr__(self, "bad_token_sequences", tuple(map(tuple, self.bad_token_sequences or ())))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", tuple(dict.fromkeys(self.allowed_token_ids)))
        if self.thinking_token_budget == -1:
            object.__setattr__(self, "thinking_token_budget", None)
        self._check_choice_of_tokens()
        self._check_length()
        self._check_bans()
        self._check_lists()
        _instance("structured_outputs", self.structured_outputs, StructuredOutputs)

    def most_tokens(self, prompt_tokens: int, max_model_len: int) -> int:
        """The most output tokens after a prompt of so many, at least 1: a prompt is computed up to the token that
        follows it. Raises ContextLengthError if `max_model_len` leaves none, RequestError if it leaves fewer than
        `min_tokens`."""
        left = max_model_len - prompt_tokens
        if left < 1:
            raise ContextLengthError.of(
                max_model_len,
                f"the prompt is too long: it has {prompt_tokens} tokens, and at least 1 must be left for the output: "
                "shorten it",
            )
        most = left if self.max_tokens is None else min(max(1, self.max_tokens), left)
        if self.min_tokens > most:
            raise RequestError(f"min_tokens is {self.min_tokens}, but at most {most} tokens can be generated")
        return most

    def _check_choice_of_tokens(self) -> None:
        for name in ("n", "top_k", "min_tokens"):
            _integer(name, getattr(self, name))
        for name in ("seed", "max_tokens", "logprobs", "prompt_logprobs", "thinking_token_budget"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name))
        _number("top_p", self.top_p)
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be in (0, 1], got {self.top_p}")
        for name in ("n", "temperature", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
            _in_range(name, getattr(self, name))
        if self.top_k < LIMITS["top_k"][0]:
            raise RequestError(f"top_k must be -1 or 0 (off) or at least 1, got {self.top_k}")
        for name in ("seed", "logprobs", "prompt_logprobs", "thinking_token_budget"):
            if getattr(self, name) is not None:
                _in_range(name, getattr(self, name))

    def _check_length(self) -> None:
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens)
        _in_range("min_tokens", self.min_tokens)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})")

    def _check_bans(self) -> None:
        _instance("repetition_detection", self.repetition_detection, RepetitionDetectionParams)
        _instance("thinking", self.thinking, ThinkingTokens)
        if len(self.bad_token_sequences) > MAX_BAD_SEQUENCES:
            raise RequestError(
                f"at most {MAX_BAD_SEQUENCES} bad token sequences are taken (a word has up to two: at the start of a "
                f"text, and after a space), got {len(self.bad_token_sequences)}"
            )
        for sequence in self.bad_token_sequences:
            if not 1 <= len(sequence) <= MAX_BAD_SEQUENCE:
                raise RequestError(
                    f"a bad word or sequence must have 1 to {MAX_BAD_SEQUENCE} tokens, got {len(sequence)}"
                )
        if (num_tokens := sum(map(len, self.bad_token_sequences))) > MAX_BAD_TOKENS:
            raise RequestError(f"bad words and sequences have at most {MAX_BAD_TOKENS} tokens in all, got {num_tokens}")
        if self.allowed_token_ids is not None:
            if not 1 <= len(self.allowed_token_ids) <= MAX_ALLOWED_TOKEN_IDS:
                raise RequestError(
                    f"allowed_token_ids must have 1 to {MAX_ALLOWED_TOKEN_IDS} token ids, got "
                    f"{len(self.allowed_token_ids)}"
                )
            bad = {sequence[0] for sequence in self.bad_token_sequences if len(sequence) == 1}
            if bad.issuperset(self.allowed_token_ids):
                raise RequestError("every one of allowed_token_ids is a bad word: no token is left to draw")

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


def _instance(name: str, value: object, kind: type[object]) -> None:
    if value is not None and not isinstance(value, kind):
        raise RequestError(f"{name} must be {kind.__name__} or None, got {value!r:.100}")


def _bad_words(words: Iterable[str] | None) -> tuple[str, ...]:
    """Each word once, in their order. Raises RequestError for a word that is not, or is too long, and for too many."""
    if isinstance(words, str):
        raise RequestError(f"bad_words must be a list of words, got the text {words!r:.100}")
    found = tuple(dict.fromkeys(words or ()))
    if len(found) > MAX_BAD_WORDS:
        raise RequestError(f"bad_words takes at most {MAX_BAD_WORDS} words, got {len(found)}")
    for word in found:
        if not isinstance(word, str) or not word:
            raise RequestError(f"bad_words must contain words that are not empty, got {word!r}")
        if len(word) > MAX_BAD_WORD:
            raise RequestError(f"a bad word has at most {MAX_BAD_WORD} characters, got {len(word)}: {word!r:.100}")
    return found
