"""The conversation that `LLM.chat` and the server take. Both validate it here, so both refuse the same fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, model_validator
from pydantic_core import PydanticCustomError

from headway.client.field_rules import OFF, AtMost, Unsupported, any_of

MAX_MESSAGES = 8192
MAX_PARTS = 1024


class StrictModel(BaseModel):
    """A record that refuses unknown fields and converts no types: the string "5" is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_field(cls, data: Any) -> Any:
        """The first unknown field ends it: pydantic would make an error of each."""
        if isinstance(data, dict) and cls.model_config.get("extra") == "forbid":
            for name in data:
                if name not in cls.model_fields:
                    raise PydanticCustomError("unknown_field", "unknown field", {"name": name})
        return data


class ContentPart(StrictModel):
    """A part of the content of a chat message. Only text is supported."""

    model_config = ConfigDict(
        extra="allow",  # an image part is refused for its type, not its fields
        strict=True,
        json_schema_extra={
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            "required": ["type", "text"],
            "additionalProperties": False,
        },
    )

    type: str
    text: str | None = None

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
    """One message of a conversation. Only an assistant's message may have no content."""

    model_config = ConfigDict(
        json_schema_extra=any_of({"role": {"const": "assistant"}}, {"content": {"type": ["string", "array"]}})
    )

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[ContentPart] | None, AtMost(MAX_PARTS, "content parts")] = None
    name: str | None = None
    # Fields of an assistant's message that a client sends back unchanged: only empty values are accepted.
    refusal: str | None = None
    annotations: Annotated[list[Any] | None, AtMost(MAX_PARTS, "annotations")] = None
    audio: Annotated[Any, Unsupported()] = None
    function_call: Annotated[Any, Unsupported()] = None
    tool_calls: Annotated[Any, Unsupported()] = None

    @model_validator(mode="after")
    def _refuse(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} needs content")
        return self

    def with_text(self, change: Callable[[str], str]) -> ChatMessage:
        """A copy in which `change` has been applied to every text."""
        content = self.content
        if isinstance(content, list):
            content = [part.model_copy(update={"text": change(part.text or "")}) for part in content]
        elif content is not None:
            content = change(content)
        name = None if self.name is None else change(self.name)
        return self.model_copy(update={"content": content, "name": name})

    def texts(self) -> list[str]:
        """The parts of its content; a plain string is one part."""
        if isinstance(self.content, list):
            return [part.text or "" for part in self.content]
        return [self.content or ""]

    def for_template(self) -> dict[str, str]:
        """The message in the form of chat templates: its content is one string, with a line break between parts."""
        message = {"role": self.role, "content": "\n".join(self.texts())}
        if self.name is not None:
            message["name"] = self.name
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


class Conversation(StrictModel):
    """Chat messages, and how to make a prompt from them.

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
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def num_characters(self) -> int:
        """The characters of all contents. A template may drop some, such as earlier thoughts: then a conversation far
        beyond the limit of a prompt is refused, although it might have fitted."""
        return sum(len(part) for message in self.messages for part in message.texts())

    @model_validator(mode="after")
    def _one_way_to_go_on(self) -> Conversation:
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError("continue_final_message needs add_generation_prompt to be false")
        return self

    def with_text(self, change: Callable[[str], str]) -> Conversation:
        """A copy in which `change` has been applied to every text of the messages."""
        return self.model_copy(update={"messages": [message.with_text(change) for message in self.messages]})
