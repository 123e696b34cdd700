"""The items of the input: messages, calls of functions and their outputs, reasoning; and the chat messages they become.

Clients keep the items of an answer and send them back as input, so items of answers are read here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from headway.client.conversation import MAX_PARTS
from headway.client.field_rules import AtMost, any_of
from headway.client.tools import Name, TolerantModel

_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


class Part(TolerantModel):
    """A part of a content. Only text is read; a refusal is text that an assistant has said."""

    model_config = ConfigDict(
        json_schema_extra=any_of(
            {"type": {"enum": list(_TEXTS)}, "text": {"type": "string"}},
            {"type": {"const": "refusal"}, "refusal": {"type": "string"}},
        )
    )

    type: str
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _only_text(self) -> Part:
        if self.type not in (*_TEXTS, "refusal"):
            raise ValueError(
                f"content parts of type {self.type!r:.60} are not served, whatever the model takes: neither images nor "
                "files nor sound are read; give parts of type 'input_text' alone"
            )
        if self.said is None:
            field = "refusal" if self.type == "refusal" else "text"
            raise ValueError(f"a content part of type {self.type!r} needs the field {field!r}")
        return self

    @property
    def said(self) -> str | None:
        return self.refusal if self.type == "refusal" else self.text


_Parts = Annotated[list[Part], Field(fail_fast=True), AtMost(MAX_PARTS, "content parts")]


class MessageItem(TolerantModel):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | _Parts


class FunctionCallItem(TolerantModel):
    """A call that the model has made. arguments: JSON text."""

    type: Literal["function_call"]
    call_id: str
    name: Name
    arguments: str


class FunctionOutputItem(TolerantModel):
    type: Literal["function_call_output"]
    call_id: str
    output: str | _Parts


class ReasoningItem(TolerantModel):
    """What the model has thought before. Encrypted reasoning cannot be read here, and adds nothing."""

    type: Literal["reasoning"]
    summary: _Parts | None = None
    content: _Parts | None = None


class OtherItem(TolerantModel):
    """An item of any other type is refused."""

    model_config = ConfigDict(json_schema_extra={"not": {}})

    type: Any

    @model_validator(mode="after")
    def _refuse(self) -> OtherItem:
        if self.type == "item_reference":
            raise ValueError("input items of type 'item_reference' are not served: nothing is stored, send the item")
        raise ValueError(
            f"input items of type {self.type!r:.60} are not served: give items of type message, function_call, "
            "function_call_output and reasoning"
        )


_MODELS = {
    "message": "#message",
    "function_call": "#function_call",
    "function_call_output": "#function_call_output",
    "reasoning": "#reasoning",
}


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else "message"
    if kind is None:
        kind = "message"
    return _MODELS.get(kind, "#other") if isinstance(kind, str) else "#other"


Item = Annotated[
    Annotated[MessageItem, Tag("#message")]
    | Annotated[FunctionCallItem, Tag("#function_call")]
    | Annotated[FunctionOutputItem, Tag("#function_call_output")]
    | Annotated[ReasoningItem, Tag("#reasoning")]
    | Annotated[OtherItem, Tag("#other")],
    Discriminator(_kind),
]


def chat_messages(items: Sequence[Any]) -> list[dict[str, Any]]:
    """The chat messages that the items become. What an assistant thought, said and called, one after the other, is one
    message."""
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case MessageItem(role="assistant"):
                _assistant(messages, without=("content", "tool_calls"))["content"] = _content(item.content)
            case MessageItem():
                messages.append({"role": item.role, "content": _content(item.content)})
            case ReasoningItem():
                if said := _said(item.content or item.summary or ()):
                    message = _assistant(messages, without=("content", "tool_calls"))
                    message["reasoning"] = message.get("reasoning", "") + said
            case FunctionCallItem():
                call = {"name": item.name, "arguments": item.arguments}
                calls = _assistant(messages).setdefault("tool_calls", [])
                calls.append({"id": item.call_id, "type": "function", "function": call})
            case FunctionOutputItem():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)})
    return messages


def _assistant(messages: list[dict[str, Any]], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The last message, if it is an assistant's and has none of these fields; else a new one."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant" or any(field in last for field in without):
        last = {"role": "assistant"}
        messages.append(last)
    return last


def _content(content: str | list[Part]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": part.said or ""} for part in content]


def _said(parts: Iterable[Part]) -> str:
    return "\n".join(part.said or "" for part in parts)
