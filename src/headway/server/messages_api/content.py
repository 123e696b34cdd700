"""The content blocks of a conversation, and the chat messages they become."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from headway.client.conversation import MAX_PARTS
from headway.client.field_rules import AtMost
from headway.client.tools import Name, TolerantModel


class TextBlock(TolerantModel):
    type: Literal["text"]
    text: str


class ThinkingBlock(TolerantModel):
    """What the model has thought before."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(TolerantModel):
    """Thoughts that only their own server can read: they add nothing here."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(TolerantModel):
    """A call that the model has made. input: its arguments."""

    type: Literal["tool_use"]
    id: str
    name: Name
    input: dict[str, Any]


class OtherBlock(TolerantModel):
    """A block of any other type is refused."""

    model_config = ConfigDict(json_schema_extra={"not": {}})

    type: Any = None

    @model_validator(mode="after")
    def _refuse(self) -> OtherBlock:
        raise ValueError(
            f"content blocks of type {self.type!r:.60} are not served here: neither images nor documents are read, and "
            "no tool runs on this server; give blocks of type text, tool_use, tool_result and thinking"
        )


def _one_of(*kinds: str) -> Discriminator:
    def tag(block: Any) -> str:
        kind = block.get("type") if isinstance(block, dict) else kinds[0]
        return f"#{kind}" if kind in kinds else "#other"

    return Discriminator(tag)


_Text = Annotated[TextBlock, Tag("#text")]
_Other = Annotated[OtherBlock, Tag("#other")]
_MOST = AtMost(MAX_PARTS, "content blocks")
TextBlocks = Annotated[list[Annotated[_Text | _Other, _one_of("text")]], Field(fail_fast=True), _MOST]


class ToolResultBlock(TolerantModel):
    """What a call has returned, or the error that it has raised."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | TextBlocks | None = None
    is_error: bool | None = None


_Result = Annotated[ToolResultBlock, Tag("#tool_result")]
_Use = Annotated[ToolUseBlock, Tag("#tool_use")]
_Thinking = Annotated[ThinkingBlock, Tag("#thinking")]
_Redacted = Annotated[RedactedThinkingBlock, Tag("#redacted_thinking")]
_UserBlock = Annotated[_Text | _Result | _Other, _one_of("text", "tool_result")]
_AssistantBlock = Annotated[
    _Text | _Use | _Thinking | _Redacted | _Other, _one_of("text", "tool_use", "thinking", "redacted_thinking")
]


class UserMessage(TolerantModel):
    role: Literal["user"]
    content: str | Annotated[list[_UserBlock], Field(fail_fast=True), _MOST]


class AssistantMessage(TolerantModel):
    role: Literal["assistant"]
    content: str | Annotated[list[_AssistantBlock], Field(fail_fast=True), _MOST]


class SystemMessage(TolerantModel):
    """Instructions in the middle of a conversation."""

    role: Literal["system"]
    content: str | TextBlocks


class OtherMessage(TolerantModel):
    """A message of any other role is refused."""

    model_config = ConfigDict(json_schema_extra={"not": {}})

    role: Any = None

    @model_validator(mode="after")
    def _refuse(self) -> OtherMessage:
        raise ValueError(f"the role of a message is 'user' or 'assistant', got {self.role!r:.60}")


_ROLES = ("user", "assistant", "system")


def _role(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else "user"
    return f"#{role}" if role in _ROLES else "#other"


Message = Annotated[
    Annotated[UserMessage, Tag("#user")]
    | Annotated[AssistantMessage, Tag("#assistant")]
    | Annotated[SystemMessage, Tag("#system")]
    | Annotated[OtherMessage, Tag("#other")],
    Discriminator(_role),
]


def chat_messages(system: str | list[Any] | None, messages: Iterable[Any]) -> list[dict[str, Any]]:
    """The chat messages of a conversation. The results of tools come before the text of the message they are in."""
    made: list[dict[str, Any]] = []
    if system:
        made.append({"role": "system", "content": _text(system)})
    for message in messages:
        match message:
            case UserMessage():
                made += _of_user(message.content)
            case AssistantMessage():
                made.append(_of_assistant(message.content))
            case _:
                made.append({"role": "system", "content": _text(message.content)})
    return made


def _of_user(content: str | list[Any]) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results = [block for block in content if isinstance(block, ToolResultBlock)]
    made = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content or "")} for block in results
    ]
    texts = [block for block in content if isinstance(block, TextBlock)]
    if texts or not results:
        made.append({"role": "user", "content": _text(texts)})
    return made


def _of_assistant(content: str | list[Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    if isinstance(content, str):
        return {**message, "content": content}
    texts = [block for block in content if isinstance(block, TextBlock)]
    thoughts = [block.thinking for block in content if isinstance(block, ThinkingBlock)]
    calls = [block for block in content if isinstance(block, ToolUseBlock)]
    if texts or not calls:
        message["content"] = _text(texts)
    if thoughts:
        message["reasoning"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.input, ensure_ascii=False)},
            }
            for call in calls
        ]
    return message


def _text(content: str | list[Any]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": block.text} for block in content] or ""
