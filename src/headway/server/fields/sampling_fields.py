"""The fields of a body about how tokens are chosen and when an answer stops, and what the engine is told of them.

Names follow OpenAI's API; fields that OpenAI does not have follow vLLM's. The types here bound what crosses to the
engine; `SamplingParams` checks the ranges, and its words refuse.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from headway.client.field_rules import AtMost
from headway.client.strict_model import StrictModel
from headway.errors import RequestError
from headway.repetition_detection import MAX_PATTERN_SIZE, MAX_REPETITIONS, RepetitionDetectionParams
from headway.sampling import (
    LIMITS,
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORD,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
)

# Integers cross to the engine in 32 bits, seeds in 64. SamplingParams checks the narrower limits.
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


def _range_of(name: str, kind: Literal["integer", "number"] = "number") -> WithJsonSchema:
    """The range of a number in the documentation; SamplingParams refuses other numbers, in its own words."""
    low, high = LIMITS[name]
    return WithJsonSchema({"type": kind, "minimum": low, "maximum": 2**31 - 1 if high is None else high})


TokenId = Annotated[Int32, WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 2**31 - 1})]
MaxTokens = Annotated[Int32, _range_of("max_tokens", "integer")]
NumLogprobs = Annotated[Int32, _range_of("logprobs", "integer")]
_StopString = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1})]
_Bias = Annotated[float, _range_of("logit_bias")]
_Biases = Annotated[dict[str, _Bias], Field(json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}})]
_BadWord = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_BAD_WORD})]


def _only_token_ids(ids: Any) -> Any:
    """The list as it is. Raises ValueError for its first item that is no token id: pydantic would make an error of
    each."""
    for index, item in enumerate(ids if isinstance(ids, list) else ()):
        if type(item) is not int or not 0 <= item < 2**31:
            raise ValueError(f"allowed_token_ids[{index}] must be a token id, got {item!r:.100}")
    return ids


def _size(most: int) -> WithJsonSchema:
    return WithJsonSchema({"type": "integer", "minimum": 0, "maximum": most})


class RepetitionDetection(StrictModel):
    """See `RepetitionDetectionParams`, which refuses other numbers."""

    max_pattern_size: Annotated[Int32, _size(MAX_PATTERN_SIZE)] = 0
    min_pattern_size: Annotated[Int32, _size(MAX_PATTERN_SIZE)] = 0
    min_count: Annotated[Int32, _size(MAX_REPETITIONS)] = 0

    def params(self) -> RepetitionDetectionParams:
        return RepetitionDetectionParams(**self.model_dump())


class SamplingFields(StrictModel):
    """Completions and chat completions have these fields."""

    n: Annotated[Int32, _range_of("n", "integer")] | None = None
    temperature: Annotated[float, _range_of("temperature")] | None = None
    top_p: Annotated[float, WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 1})] | None = None
    presence_penalty: Annotated[float, _range_of("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, _range_of("frequency_penalty")] | None = None
    logit_bias: Annotated[_Biases | None, AtMost(MAX_LOGIT_BIAS, "tokens")] = None
    seed: Int64 | None = None
    stop: Annotated[_StopString | list[_StopString] | None, AtMost(MAX_STOP_STRINGS, "strings")] = None

    # fields that OpenAI does not have, with vLLM's names
    top_k: Annotated[Int32, _range_of("top_k", "integer")] | None = None
    min_p: Annotated[float, _range_of("min_p")] | None = None
    repetition_penalty: Annotated[float, _range_of("repetition_penalty")] | None = None
    min_tokens: Annotated[Int32, _range_of("min_tokens", "integer")] | None = None
    stop_token_ids: Annotated[list[TokenId] | None, AtMost(MAX_STOP_TOKEN_IDS, "token ids")] = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    prompt_logprobs: NumLogprobs | None = None
    bad_words: Annotated[list[_BadWord] | None, AtMost(MAX_BAD_WORDS, "words")] = None
    allowed_token_ids: Annotated[
        Annotated[list[TokenId], Field(json_schema_extra={"minItems": 1})] | None,
        BeforeValidator(_only_token_ids),
        AtMost(MAX_ALLOWED_TOKEN_IDS, "token ids"),
    ] = None
    repetition_detection: RepetitionDetection | None = None
    thinking_token_budget: Annotated[Int32, _range_of("thinking_token_budget", "integer")] | None = None

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Alternatives per token of the prompt that the engine is asked for; None: nothing is said of the prompt."""
        return self.prompt_logprobs

    def for_prefill(self) -> dict[str, Any]:
        """The fields that P needs for the first token of the answer, and for the place of the prompt in its queue."""
        fields: dict[str, Any] = self.model_dump(include=_FOR_PREFILL, exclude_none=True)
        return {**fields, "min_tokens": min(1, self.min_tokens or 0)}

    def _sampling(
        self, *, max_tokens: int | None, logprobs: int | None, defaults: dict[str, Any], **more: Any
    ) -> SamplingParams:
        """defaults: the model's own. more: what SamplingParams is told beside the fields of this class. Raises
        RequestError for values out of range."""
        given: dict[str, Any] = {**defaults, **more}
        limit = given.pop("max_tokens", None)
        if limit is not None:
            max_tokens = limit if max_tokens is None else min(max_tokens, limit)
        for name in _SAMPLING_FIELDS:
            value = getattr(self, name)
            if value is not None:
                given[name] = value
        if self.logit_bias is not None:
            given["logit_bias"] = {_token_id(key): bias for key, bias in self.logit_bias.items()}
        if self.repetition_detection is not None:
            given["repetition_detection"] = self.repetition_detection.params()
        return SamplingParams(
            **given, max_tokens=max_tokens, logprobs=logprobs, prompt_logprobs=self.num_prompt_logprobs
        )


_FOR_PREFILL = {
    *("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "logit_bias", "ignore_eos", "stop_token_ids", "priority", "cache_salt"),
    *("bad_words", "allowed_token_ids"),
}
_SAMPLING_FIELDS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "bad_words",
    "allowed_token_ids",
    "thinking_token_budget",
)


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise RequestError(f"logit_bias takes token ids as its keys, got {key!r}")
    return int(key)
