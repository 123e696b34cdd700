"""The request bodies, validated field by field.

Names follow OpenAI's API; fields that OpenAI does not have follow vLLM's. A field that asks for something that
is not supported here is refused by name; a field that is not known is ignored before (`unknown_fields.py`). Types are
strict: the string "5" is not a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

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
    model_validator,
)

from headway.client.conversation import ONE_WAY_TO_GO_ON, Conversation
from headway.client.field_rules import NOTHING, ON, AtMost, Unsupported, any_of
from headway.client.strict_model import StrictModel
from headway.errors import ContextLengthError
from headway.kv_transfer_params import copied
from headway.request import NewRequest, Transfer
from headway.sampling import MAX_LOGPROBS, SamplingParams
from headway.server.fields.prompt_fields import PromptFields
from headway.server.fields.reasoning_fields import ReasoningFields
from headway.server.fields.sampling_fields import Int32, MaxTokens, NumLogprobs, SamplingFields, TokenId
from headway.server.fields.structured_output_fields import StructuredOutputFields
from headway.server.fields.token_id_fields import TokenIdFields
from headway.server.fields.tool_fields import CALLS_NEED_TOOLS, ToolConversation

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions

Prompt = str | list[int]
_TokenIds = Annotated[list[TokenId], Field(min_length=1)]
_PromptForms = (
    str | Annotated[list[str], Field(min_length=1)] | _TokenIds | Annotated[list[_TokenIds], Field(min_length=1)]
)


class Ignored(StrictModel):
    """Fields that clients send and that change no answer here. vllm_xargs: for extensions, of which there are none."""

    user: str | None = None
    metadata: Annotated[dict[str, str] | None, AtMost(64, "entries")] = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    vllm_xargs: dict[str, Any] | None = None


class StreamOptions(StrictModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis; never added


_STREAM_OPTIONS = any_of({"stream_options": NOTHING}, {"stream": ON})


class GenerationRequest(Ignored, SamplingFields, StructuredOutputFields):
    """The fields that completions and chat completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # fields that OpenAI does not have, with vLLM's names
    priority: Int32 = 0
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    request_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    kv_transfer_params: Annotated[dict[str, Any], AfterValidator(copied)] | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self

    def check_context(self, max_model_len: int) -> None:
        """Raises ContextLengthError if more output is asked for than the context can hold, were there no prompt. With
        a prompt, less may be left: then the answer ends by length where the context does."""
        for name in ("max_completion_tokens", "max_tokens"):
            asked = getattr(self, name, None)
            if asked is not None and asked > max_model_len:
                raise ContextLengthError.of(
                    max_model_len,
                    f"{name} asks for {asked} tokens of output: ask for fewer, or leave it out to have what the prompt "
                    "leaves",
                )

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
                transfer=None if len(prompts) > 1 else Transfer.wanted_by(self.kv_transfer_params, sampling),
                kv_transfer_params=self.kv_transfer_params,
                arrival_time=arrival_time,
            )
            for i, prompt in enumerate(prompts)
        ]


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


class CompletionRequest(GenerationRequest, PromptFields, TokenIdFields):
    """POST /v1/completions."""

    model_config = ConfigDict(json_schema_extra={"allOf": [_STREAM_OPTIONS]})

    prompt: Annotated[
        list[Prompt],
        PlainValidator(_check_prompt, json_schema_input_type=_PromptForms),
    ]
    max_tokens: MaxTokens | None = DEFAULT_COMPLETION_TOKENS
    logprobs: NumLogprobs | None = None
    echo: bool | None = None
    best_of: Int32 | None = None
    suffix: Annotated[Any, Unsupported("")] = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _refuse(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(
                f"best_of ({self.best_of}) must equal n ({self.n or 1}): answers are not ranked and dropped"
            )
        return self

    @property
    def num_prompt_logprobs(self) -> int | None:
        if not self.echo or self.logprobs is None:
            return self.prompt_logprobs
        return max(self.logprobs, self.prompt_logprobs or 0)

    def sampling(self, defaults: dict[str, Any]) -> SamplingParams:
        """Raises RequestError for values out of range. defaults: the model's own."""
        return self._sampling(
            max_tokens=self.max_tokens, logprobs=self.logprobs, defaults=defaults, structured_outputs=self.form()
        )


class ChatCompletionRequest(GenerationRequest, ToolConversation, PromptFields, TokenIdFields, ReasoningFields):
    """POST /v1/chat/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                _STREAM_OPTIONS,
                ONE_WAY_TO_GO_ON,
                CALLS_NEED_TOOLS,
                any_of({"top_logprobs": {"enum": [0, None]}}, {"logprobs": ON}),
                any_of({"max_tokens": NOTHING}, {"max_completion_tokens": NOTHING}),
            ]
        }
    )

    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    add_special_tokens: bool = False  # the template has written them already

    # Fields of OpenAI's API that this server does not support.
    modalities: Annotated[Any, Unsupported(["text"])] = None
    audio: Annotated[Any, Unsupported()] = None
    prediction: Annotated[Any, Unsupported()] = None
    verbosity: Annotated[Any, Unsupported("medium")] = None
    web_search_options: Annotated[Any, Unsupported()] = None

    @model_validator(mode="after")
    def _refuse(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None:
            if not self.logprobs and self.top_logprobs != 0:
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
        return self._sampling(
            max_tokens=max_tokens, logprobs=logprobs, defaults=defaults, structured_outputs=self.form()
        )


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
