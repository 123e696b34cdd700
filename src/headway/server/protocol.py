"""The request bodies, validated field by field.

Names follow OpenAI's API; fields that OpenAI does not have follow vLLM's. An unknown field is refused by name. So is a
field that asks for something this server does not support. No field is ignored in silence except those of
`_Bookkeeping`, which change no answer. Types are strict: the string "5" is not a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
    model_validator,
)

from headway.client.conversation import ONE_WAY_TO_GO_ON, Conversation, StrictModel
from headway.client.field_rules import NOTHING, OFF, ON, AtMost, Unsupported, any_of
from headway.errors import RequestError
from headway.kv_transfer_params import copied
from headway.request import NewRequest, Transfer
from headway.sampling import LIMITS, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS, SamplingParams
from headway.server.reasoning_fields import ReasoningFields
from headway.server.structured_output_fields import StructuredOutputFields
from headway.server.tool_fields import ToolFields

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions

# Integers cross to the engine in 32 bits, seeds in 64. SamplingParams checks the narrower limits.
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


def _range_of(name: str, kind: Literal["integer", "number"] = "number") -> WithJsonSchema:
    """The range of a number in the documentation; SamplingParams refuses other numbers, in its own words."""
    low, high = LIMITS[name]
    return WithJsonSchema({"type": kind, "minimum": low, "maximum": 2**31 - 1 if high is None else high})


TokenId = Annotated[Int32, WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 2**31 - 1})]
_MaxTokens = Annotated[Int32, _range_of("max_tokens", "integer")]
_Logprobs = Annotated[Int32, _range_of("logprobs", "integer")]
_StopString = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1})]
_Bias = Annotated[float, _range_of("logit_bias")]
_Biases = Annotated[dict[str, _Bias], Field(json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}})]

Prompt = str | list[int]
_TokenIds = Annotated[list[TokenId], Field(min_length=1)]
_PromptForms = (
    str | Annotated[list[str], Field(min_length=1)] | _TokenIds | Annotated[list[_TokenIds], Field(min_length=1)]
)


class _Bookkeeping(StrictModel):
    """Fields of OpenAI's API that SDKs send and that change no answer here."""

    user: str | None = None
    metadata: Annotated[dict[str, str] | None, AtMost(64, "entries")] = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class StreamOptions(StrictModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis; never added


_STREAM_OPTIONS = any_of({"stream_options": NOTHING}, {"stream": ON})


class _Generate(_Bookkeeping, StructuredOutputFields):
    """The fields that completions and chat completions have in common."""

    model: str | None = None
    n: Annotated[Int32, _range_of("n", "integer")] | None = None
    temperature: Annotated[float, _range_of("temperature")] | None = None
    top_p: Annotated[float, WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 1})] | None = None
    presence_penalty: Annotated[float, _range_of("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, _range_of("frequency_penalty")] | None = None
    logit_bias: Annotated[_Biases | None, AtMost(MAX_LOGIT_BIAS, "tokens")] = None
    seed: Int64 | None = None
    stop: Annotated[_StopString | list[_StopString] | None, AtMost(MAX_STOP_STRINGS, "strings")] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # fields that OpenAI does not have, with vLLM's names
    top_k: Annotated[Int32, _range_of("top_k", "integer")] | None = None
    min_p: Annotated[float, _range_of("min_p")] | None = None
    repetition_penalty: Annotated[float, _range_of("repetition_penalty")] | None = None
    min_tokens: Annotated[Int32, _range_of("min_tokens", "integer")] | None = None
    stop_token_ids: Annotated[list[TokenId] | None, AtMost(MAX_STOP_TOKEN_IDS, "token ids")] = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Int32 = 0
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    request_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    kv_transfer_params: Annotated[dict[str, Any], AfterValidator(copied)] | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> _Generate:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def new_requests(
        self, request_id: str, prompts: Sequence[NDArray[np.int32]], sampling: SamplingParams, arrival_time: float
    ) -> list[NewRequest]:
        """One request for the engine per prompt. prompts: as `token_ids.pack` makes them.

        With several prompts, prompt i has the request id "<request_id>-<i>".
        """
        return [
            NewRequest(
                request_id=request_id if len(prompts) == 1 else f"{request_id}-{i}",
                prompt=prompt,
                sampling=sampling,
                priority=self.priority,
                cache_salt=self.cache_salt,
                transfer=None if len(prompts) > 1 else Transfer.wanted_by(self.kv_transfer_params, sampling.n),
                kv_transfer_params=self.kv_transfer_params,
                arrival_time=arrival_time,
            )
            for i, prompt in enumerate(prompts)
        ]

    def for_prefill(self) -> dict[str, Any]:
        """The fields that P needs for the first token of the answer, and for the place of the prompt in its queue."""
        fields: dict[str, Any] = self.model_dump(include=_FOR_PREFILL, exclude_none=True)
        return {**fields, "min_tokens": min(1, self.min_tokens or 0)}

    def _sampling(self, *, max_tokens: int | None, logprobs: int | None, defaults: dict[str, Any]) -> SamplingParams:
        given: dict[str, Any] = dict(defaults)
        limit = given.pop("max_tokens", None)
        if limit is not None:
            max_tokens = limit if max_tokens is None else min(max_tokens, limit)
        for name in _SAMPLING_FIELDS:
            value = getattr(self, name)
            if value is not None:
                given[name] = value
        if self.logit_bias is not None:
            given["logit_bias"] = {_token_id(key): bias for key, bias in self.logit_bias.items()}
        return SamplingParams(**given, max_tokens=max_tokens, logprobs=logprobs)


_FOR_PREFILL = {
    *("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "logit_bias", "ignore_eos", "stop_token_ids", "priority", "cache_salt"),
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
)


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise RequestError(f"logit_bias takes token ids as its keys, got {key!r}")
    return int(key)


def _is_token_list(value: list[Any]) -> bool:
    return all(kind is int for kind in set(map(type, value)))


def _check_prompt(value: Any) -> list[Prompt]:
    """The prompt field, in any of its four forms, as a list of prompts. Raises ValueError for another form."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        if not value:
            raise ValueError("prompt is empty: give at least one prompt")
        if type(value[0]) is int and _is_token_list(value):
            return [value]
        if all(isinstance(item, str) for item in value):
            return list(value)
        if all(isinstance(item, list) and _is_token_list(item) for item in value):
            return list(value)
    raise ValueError("prompt must be a string, a list of strings, a list of token ids, or a list of lists of token ids")


class CompletionRequest(_Generate):
    """POST /v1/completions."""

    model_config = ConfigDict(
        json_schema_extra={"allOf": [_STREAM_OPTIONS, any_of({"echo": OFF}, {"logprobs": NOTHING})]}
    )

    prompt: Annotated[
        list[Prompt],
        PlainValidator(_check_prompt, json_schema_input_type=_PromptForms),
    ]
    max_tokens: _MaxTokens | None = DEFAULT_COMPLETION_TOKENS
    logprobs: _Logprobs | None = None
    echo: bool | None = None
    best_of: Int32 | None = None
    suffix: Annotated[Any, Unsupported()] = None

    @model_validator(mode="after")
    def _refuse(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(
                f"best_of ({self.best_of}) must equal n ({self.n or 1}): answers are not ranked and dropped"
            )
        if self.echo and self.logprobs is not None:
            raise ValueError("echo together with logprobs needs logprobs of the prompt, which are not supported")
        return self

    def sampling(self, defaults: dict[str, Any]) -> SamplingParams:
        """Raises RequestError for values out of range. defaults: the model's own."""
        return self._sampling(max_tokens=self.max_tokens, logprobs=self.logprobs, defaults=defaults)


class ChatCompletionRequest(_Generate, Conversation, ToolFields, ReasoningFields):
    """POST /v1/chat/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                _STREAM_OPTIONS,
                ONE_WAY_TO_GO_ON,
                any_of({"top_logprobs": NOTHING}, {"logprobs": ON}),
                any_of({"max_tokens": NOTHING}, {"max_completion_tokens": NOTHING}),
            ]
        }
    )

    max_tokens: _MaxTokens | None = None
    max_completion_tokens: _MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: _Logprobs | None = None

    # Fields of OpenAI's API that this server does not support.
    modalities: Annotated[Any, Unsupported(["text"])] = None
    audio: Annotated[Any, Unsupported()] = None
    prediction: Annotated[Any, Unsupported()] = None
    verbosity: Annotated[Any, Unsupported()] = None
    web_search_options: Annotated[Any, Unsupported()] = None

    @model_validator(mode="after")
    def _refuse(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None:
            if not self.logprobs:
                raise ValueError("top_logprobs needs logprobs to be true")
            if not 0 <= self.top_logprobs <= MAX_LOGPROBS:
                raise ValueError(f"top_logprobs must be in [0, {MAX_LOGPROBS}], got {self.top_logprobs}")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError(
                f"max_tokens ({self.max_tokens}) and max_completion_tokens ({self.max_completion_tokens}) "
                "differ: give one of them"
            )
        return self

    def sampling(self, defaults: dict[str, Any]) -> SamplingParams:
        """Raises RequestError for values out of range. defaults: the model's own."""
        max_tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._sampling(max_tokens=max_tokens, logprobs=logprobs, defaults=defaults)


class TokenizeRequest(StrictModel):
    """POST /tokenize with a text."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class TokenizeChatRequest(Conversation):
    """POST /tokenize with a conversation."""

    model: str | None = None
    add_special_tokens: bool = False
    return_token_strs: bool | None = None


class DetokenizeRequest(StrictModel):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[TokenId], FailFast()]


TokenizeBody = Annotated[
    Annotated[TokenizeRequest, Tag("#text")] | Annotated[TokenizeChatRequest, Tag("#chat")],
    Discriminator(lambda body: "#chat" if isinstance(body, dict) and "messages" in body else "#text"),
]
