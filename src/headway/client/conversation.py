"""The conversation that `LLM.chat` and the server take. Both validate it here, so both refuse the same fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator

from headway.client.field_rules import NOTHING, OFF, AtMost, Unsupported, any_of
from headway.client.strict_model import StrictModel
from headway.client.tools import MAX_CALLS, MAX_TOOLS, Call, Tool, changed
from headway.error_text import describe
from headway.errors import RequestError

MAX_MESSAGES = 8192
MAX_PARTS = 1024
MAX_DOCUMENTS = 1024

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ContentPart(StrictModel):
    """A part of the content of a chat message. Only text is supported."""

    model_config = ConfigDict(
        extra="allow",  # an image part is refused for its type, not its fields
        strict=True,
        json_schema_extra={
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}, "cache_control": {}},
            "required": ["type", "text"],
            "additionalProperties": False,
        },
    )

    type: str
    text: str | None = None
    cache_control: Any = None  # Anthropic's clients write it; what is cached is decided here

    @model_validator(mode="after")
    def _only_text(self) -> ContentPart:
        if self.type != "text":
            raise ValueError(
                f"content parts of type {self.type!r:.60} are not served, whatever the model takes: neither images nor "
                "sound are read; give parts of type 'text' alone"
            )
        if self.text is None:
            raise ValueError("a content part of type 'text' needs the field 'text'")
        for unknown in self.model_extra or ():
            raise ValueError(f"unknown field {unknown!r} in a content part of type 'text'")
        return self


class ChatMessage(StrictModel):
    """One message of a conversation. Only an assistant's message may have no content.

    tool_calls: of an assistant's message: what the model called. tool_call_id: of a tool's message: the call whose
        result it is.
    reasoning, reasoning_content: of an assistant's message, by its newer and its older name. Most templates leave it
        out, or keep it since the last question alone.
    """

    model_config = ConfigDict(
        json_schema_extra=any_of(
            {"role": {"const": "assistant"}}, {"content": {"type": ["string", "array"]}, "tool_calls": NOTHING}
        )
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | list[ContentPart] | None, AtMost(MAX_PARTS, "content parts")] = None
    name: str | None = None
    tool_calls: Annotated[list[Call] | None, AtMost(MAX_CALLS, "calls")] = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    # Fields of messages that clients send back unchanged, and that make no difference.
    refusal: str | None = None
    annotations: Annotated[list[Any] | None, AtMost(MAX_PARTS, "annotations")] = None
    cache_control: Any = None
    audio: Annotated[Any, Unsupported()] = None
    function_call: Annotated[Any, Unsupported()] = None

    @model_validator(mode="after")
    def _refuse(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} needs content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} has no tool_calls: only an assistant's message has")
        return self

    def texts(self) -> list[str]:
        """The parts of its content; a plain string is one part."""
        if isinstance(self.content, list):
            return [part.text or "" for part in self.content]
        return [self.content or ""]

    def for_template(self) -> dict[str, Any]:
        """The message in the form of chat templates: its content is one string, with a line break between parts."""
        message: dict[str, Any] = {"role": self.role, "content": "\n".join(self.texts())}
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        thought = self.reasoning if self.reasoning is not None else self.reasoning_content
        if thought is not None:
            message["reasoning"] = message["reasoning_content"] = thought
        return message


def _as_dicts(messages: Any) -> Any:
    """The chat messages as a list of dicts. Raises ValueError for an empty list and for an item that is no mapping. A
    value that is no sequence is returned as it is: pydantic refuses it."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        return messages
    if not messages:
        raise ValueError("messages is empty: a conversation needs at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping | ChatMessage):
            raise ValueError(f"messages[{index}] must be a mapping with a role and a content, got {message!r:.100}")
    return [dict(message) if isinstance(message, Mapping) else message for message in messages]


ONE_WAY_TO_GO_ON = any_of({"continue_final_message": OFF}, {"add_generation_prompt": {"const": False}})


class Effort(StrictModel):
    """How much the model should think before it answers: "none" for not at all. Some chat templates heed it."""

    reasoning_effort: ReasoningEffort | None = None


def _plain(value: Any) -> Any:
    """Mappings as dicts and sequences as lists, at the outermost two levels."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [dict(item) if isinstance(item, Mapping) else item for item in value]
    return value


class Conversation(Effort):
    """Chat messages, and how to make a prompt from them.

    tools: what the model may call. documents: what it may quote. Chat templates write these into the prompt.
    add_generation_prompt: end the prompt with the opening of the assistant's answer.
    continue_final_message: leave the last message open, so that the answer continues it.
    chat_template: the text of a template, or the name of a template of the tokenizer; used instead of the default.
    chat_template_kwargs: more variables for the template.
    """

    model_config = ConfigDict(json_schema_extra=ONE_WAY_TO_GO_ON)

    messages: Annotated[
        list[ChatMessage],
        FailFast(),
        BeforeValidator(_as_dicts),
        AtMost(MAX_MESSAGES, "messages"),
        Field(json_schema_extra={"minItems": 1}),
    ]
    tools: Annotated[list[Tool] | None, FailFast(), AtMost(MAX_TOOLS, "tools")] = None
    documents: Annotated[list[dict[str, Any]] | None, AtMost(MAX_DOCUMENTS, "documents")] = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @classmethod
    def of(cls, messages: Any, **options: Any) -> Conversation:
        """The conversation of a program: mappings and sequences of any kind. options: the other fields. Raises
        RequestError, with the message that the server would send."""
        given = {name: _plain(value) for name, value in options.items()}
        try:
            return cls.model_validate({"messages": messages, **given})
        except ValidationError as error:
            raise RequestError(describe(error)[0]) from None

    @property
    def num_characters(self) -> int:
        """The characters of all contents. A template may drop some, such as earlier thoughts: then a conversation far
        beyond the limit of a prompt is refused, although it might have fitted."""
        return sum(len(part) for message in self.messages for part in message.texts())

    @property
    def size(self) -> int:
        """The characters that a template has to go through, tools and calls included; roughly."""
        others = [
            [tool.for_template() for tool in self.tools or ()],
            [call.for_template() for message in self.messages for call in message.tool_calls or ()],
            self.documents,
        ]
        return self.num_characters + len(msgspec.json.encode(others))

    @model_validator(mode="after")
    def _one_way_to_go_on(self) -> Conversation:
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError("continue_final_message needs add_generation_prompt to be false")
        return self

    def variables(self, change: Callable[[str], str] | None = None) -> dict[str, Any]:
        """The variables of a chat template. change: is applied to every text of messages, tools and documents."""
        told: dict[str, Any] = {
            "messages": [message.for_template() for message in self.messages],
            "tools": [tool.for_template() for tool in self.tools or ()] or None,
            "documents": self.documents or None,
        }
        if change is not None:
            told = {name: changed(value, change) for name, value in told.items()}
        told = {name: value for name, value in told.items() if value is not None}
        if self.reasoning_effort is not None:
            told["reasoning_effort"] = self.reasoning_effort
            told["enable_thinking"] = self.reasoning_effort != "none"
        return {**told, **(self.chat_template_kwargs or {})}
