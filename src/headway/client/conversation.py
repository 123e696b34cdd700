"""A conversation as `LLM.chat` and the server take it: validated field by field, with the same refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class StrictModel(BaseModel):
    """Takes the fields that it declares and no others; the string "5" is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


def refuse_unsupported(unsupported: dict[str, Any]) -> None:
    """Raises ValueError for a field that asks for what Headway does not do; empty values ask for nothing."""
    for name, value in unsupported.items():
        if value is not None and value != [] and value != {}:
            raise ValueError(f"{name} is not supported: leave it out")


class ContentPart(StrictModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="allow", strict=True)  # an image part is refused for its type, not its fields

    type: str
    text: str | None = None

    @model_validator(mode="after")
    def _only_text(self) -> ContentPart:
        if self.type != "text":
            raise ValueError(f"content parts of type {self.type!r} are not supported: give parts of type 'text'")
        if self.text is None:
            raise ValueError("a content part of type 'text' needs the field 'text'")
        for unknown in self.model_extra or ():
            raise ValueError(f"unknown field {unknown!r} in a content part of type 'text'")
        return self


class ChatMessage(StrictModel):
    """What one side said. Only an assistant's message may come without content."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    # What an assistant's message carries when it is sent back as it came: only empty values are taken.
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Any = None

    @model_validator(mode="after")
    def _refuse(self) -> ChatMessage:
        refuse_unsupported({"audio": self.audio, "function_call": self.function_call, "tool_calls": self.tool_calls})
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} needs content")
        return self

    def for_template(self) -> dict[str, str]:
        """The message as chat templates read it: its content is one string, each part of it a line of its own."""
        if isinstance(self.content, list):
            content = "\n".join(part.text or "" for part in self.content)
        else:
            content = self.content or ""
        message = {"role": self.role, "content": content}
        if self.name is not None:
            message["name"] = self.name
        return message


def _as_dicts(messages: Any) -> Any:
    """Mappings of any kind as dicts, in a list. Raises ValueError for an empty conversation and for what is no mapping;
    what is no sequence at all is left to pydantic."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        return messages
    if not messages:
        raise ValueError("messages is empty: a conversation needs at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping | ChatMessage):
            raise ValueError(f"messages[{index}] must be a mapping with a role and a content, got {message!r:.100}")
    return [dict(message) if isinstance(message, Mapping) else message for message in messages]


class Conversation(StrictModel):
    """What turns messages into a prompt.

    add_generation_prompt: end with the opening of the assistant's answer.
    continue_final_message: leave the last message open, so that the answer goes on with it.
    chat_template: the text of a template or the name of one of the tokenizer's, instead of the template that is set.
    chat_template_kwargs: more variables for the template.
    """

    messages: Annotated[list[ChatMessage], BeforeValidator(_as_dicts), Field(json_schema_extra={"minItems": 1})]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_way_to_go_on(self) -> Conversation:
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError("continue_final_message needs add_generation_prompt to be false")
        return self
