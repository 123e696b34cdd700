"""The response bodies of OpenAI's API, as structs that msgspec writes as JSON.

A field with the value UNSET is left out. None is written as null, as in OpenAI's API.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from headway.sampling import SamplingParams
from headway.wire.to_client import Owner


class PromptTokensDetails(Struct):
    cached_tokens: int = 0


class Usage(Struct):
    """Token counts. A prompt counts once, also with several answers. Tokens after a stop string do not count."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(Struct):
    """One entry per token. A prompt's first token, if the prompt is echoed, has null for its log-probabilities.

    text_offset: where the token starts, in characters of the choice's text; a token that starts inside a character has
        the offset of the character.
    """

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)


class PromptTokenLogprob(Struct):
    logprob: float
    rank: int
    decoded_token: str


PromptEntries = list[dict[str, PromptTokenLogprob] | None]
"""One entry per token of a prompt, by token ids; null for the first."""


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptEntries | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Struct):
    """The answer of /v1/completions, and each chunk of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    kv_transfer_params: dict[str, Any] | UnsetType = UNSET
    object: Literal["text_completion"] = "text_completion"


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


class Function(Struct):
    """arguments: JSON text. In a stream: the next piece of it; only the first part of a call has its name."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCall(Struct):
    """A call of a tool, or in a stream a part of one. index: in streams alone. id, type: only in the first part."""

    function: Function
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    index: int | UnsetType = UNSET


class Message(Struct):
    """reasoning, reasoning_content: the same text, by its newer and its older name."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: Message
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct):
    """The answer of /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    kv_transfer_params: dict[str, Any] | UnsetType = UNSET
    prompt_logprobs: PromptEntries | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    object: Literal["chat.completion"] = "chat.completion"


class Delta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct):
    """Each chunk of the stream of /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    kv_transfer_params: dict[str, Any] | UnsetType = UNSET
    prompt_logprobs: PromptEntries | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class ModelCard(Struct):
    """root: the folder of the model. created: when the server began to serve it, in seconds since 1970."""

    id: str
    created: int
    root: str
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: str = "headway"
    parent: None = None


class ModelList(Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class Tokens(Struct):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Rendered(Struct):
    """A prompt as the engine would get it: the answer of /v1/chat/completions/render, and an item of the list that
    /v1/completions/render answers.

    sampling_params: with the model's defaults, and the `max_tokens` that the model leaves.
    features, kv_transfer_params: fields of vLLM's form that have no value here.
    """

    request_id: str
    token_ids: list[int]
    sampling_params: SamplingParams
    model: str
    stream: bool
    stream_options: dict[str, Any] | None
    cache_salt: str | None
    priority: int
    features: None = None
    kv_transfer_params: None = None


class Text(Struct):
    """The answer of /detokenize."""

    prompt: str


class Version(Struct):
    version: str


class Load(Struct):
    """The answer of /load. server_load: requests in progress."""

    server_load: int


class ServerInfo(Struct):
    """The answer of /server_info. config: the settings of the scheduler, as one text or by name."""

    version: str
    model: str
    model_path: str
    max_model_len: int
    vocab_size: int
    quantization: str | None
    config: str | dict[str, Any]


class Root(Struct):
    """The answer of /."""

    version: str
    name: str = "Headway"
    docs: str = "/docs"
    models: str = "/v1/models"
    health: str = "/health"
    metrics: str = "/metrics"


class Status(Struct):
    """The answer of /pause and /resume: the new state of the server."""

    status: Literal["paused", "resumed"]


class PauseState(Struct):
    """The answer of /is_paused."""

    is_paused: bool


class Reset(Struct):
    """The answer of /reset_prefix_cache. num_blocks: blocks that the prefix cache had."""

    num_blocks: int
    status: Literal["reset"] = "reset"


class Health(Struct, omit_defaults=True):
    """The answer of /health while requests can be served. unhealthy: engines that cannot, by name, with the reason."""

    paused: bool = False
    unhealthy: dict[str, str] = {}


class Ownership(Struct):
    """The answer of /debug/ownership. problems: one line each. num_blocks: without the padding block."""

    ok: bool
    problems: tuple[str, ...]
    num_requests: int
    num_slots: int
    num_slots_used: int
    num_blocks: int
    num_blocks_referenced: int
    num_blocks_evictable: int
    num_blocks_free: int
    num_leases: int
    owners: tuple[Owner, ...]
