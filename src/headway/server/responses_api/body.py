"""The body of POST /v1/responses, and the chat completion that it asks for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from headway.client.conversation import MAX_MESSAGES, ReasoningEffort
from headway.client.field_rules import AtMost, Unsupported
from headway.client.tools import MAX_TOOLS, TolerantModel
from headway.server.fields.chat_asking import AsksForChat
from headway.server.fields.protocol import GenerationRequest
from headway.server.fields.reasoning_fields import ReasoningFields
from headway.server.fields.refused import Refused
from headway.server.fields.sampling_fields import NumLogprobs
from headway.server.responses_api.function_tools import Tool, ToolChoice, tools_for_chat
from headway.server.responses_api.input_items import Item, MessageItem, ReasoningItem, chat_messages

_NOTHING_STORED = "nothing is stored here between requests; send the whole conversation as input"
_NO_REASONING: dict[str, JsonValue] = {"not": {"properties": {"type": {"const": "reasoning"}}, "required": ["type"]}}
_AT_LEAST_ONE = Field(json_schema_extra={"minItems": 1, "contains": _NO_REASONING})
LOGPROBS = "message.output_text.logprobs"


class Reasoning(TolerantModel):
    """effort: see `ReasoningFields`. summary: what was thought is answered as it is, and not summed up."""

    effort: ReasoningEffort | None = None
    summary: str | None = None


class TextFormat(TolerantModel):
    """The form of the text: any, a JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """`response_format` of a chat completion."""
        if self.type != "json_schema":
            return {"type": self.type}
        given = {"name": self.name, "description": self.description, "schema": self.schema_, "strict": self.strict}
        return {"type": self.type, "json_schema": {name: value for name, value in given.items() if value is not None}}

    def shown(self) -> dict[str, Any]:
        """The format in a response."""
        return self.model_dump(by_alias=True, exclude_none=True)


class Text(TolerantModel):
    format: TextFormat | None = None
    verbosity: Annotated[Any, Unsupported("medium")] = None


class ResponsesRequest(AsksForChat, GenerationRequest, ReasoningFields):
    """POST /v1/responses."""

    n: Literal[1] | None = None  # a response has one answer
    input: str | Annotated[list[Item], Field(fail_fast=True), AtMost(MAX_MESSAGES, "items"), _AT_LEAST_ONE]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    tools: Annotated[list[Tool] | None, Field(fail_fast=True), AtMost(MAX_TOOLS, "tools")] = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None  # of tools that a server runs: there are none
    text: Text | None = None
    reasoning: Reasoning | None = None
    include: Annotated[list[str] | None, AtMost(64, "entries")] = None
    top_logprobs: NumLogprobs | None = None
    truncation: Literal["auto", "disabled"] | None = None  # auto: tokens are cut off the beginning of a long prompt
    chat_template_kwargs: dict[str, Any] | None = None

    previous_response_id: Annotated[Any, Refused(_NOTHING_STORED)] = None
    conversation: Annotated[Any, Refused(_NOTHING_STORED)] = None
    background: Annotated[
        Any, Refused("nothing is stored here, so an answer that comes later could not be fetched", False)
    ] = None
    prompt: Annotated[Any, Refused("prompts are not stored here; send its text as input")] = None

    def _chat_fields(self) -> dict[str, Any]:
        shared = self.model_fields_set & (GenerationRequest.model_fields.keys() | ReasoningFields.model_fields.keys())
        fields: dict[str, Any] = {name: getattr(self, name) for name in shared}
        fields.update(tools_for_chat(self.tools, self.tool_choice))
        for name in ("parallel_tool_calls", "chat_template_kwargs"):
            if (value := getattr(self, name)) is not None:
                fields[name] = value
        if self.truncation == "auto":
            fields["truncate_prompt_tokens"] = -1
        if self.max_output_tokens is not None:
            fields["max_completion_tokens"] = self.max_output_tokens
        if self.reasoning is not None and self.reasoning.effort is not None:
            fields["reasoning_effort"] = self.reasoning.effort
        if self.text is not None:
            if self.text.verbosity is not None:
                fields["verbosity"] = self.text.verbosity
            if self.text.format is not None:
                fields["response_format"] = self.text.format.for_chat()
        if LOGPROBS in (self.include or ()):
            fields["logprobs"] = True
            fields["top_logprobs"] = self.top_logprobs
        return {**fields, "messages": self._messages()}

    def _messages(self) -> list[dict[str, Any]]:
        if isinstance(self.input, list) and all(isinstance(item, ReasoningItem) for item in self.input):
            raise ValueError("input has no message: give a text, or at least one item that is no reasoning")
        items = [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        messages = chat_messages(items)
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        return messages
