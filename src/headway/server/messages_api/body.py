"""The bodies of /v1/messages and /v1/messages/count_tokens, and the chat completions that they ask for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from headway.client.conversation import MAX_MESSAGES, ReasoningEffort
from headway.client.field_rules import AtMost
from headway.client.tools import MAX_TOOLS, Name, TolerantModel
from headway.sampling import MAX_STOP_STRINGS
from headway.server.errors import ApiError
from headway.server.fields.chat_asking import AsksForChat, ToolOfTheServer
from headway.server.fields.protocol import GenerationRequest
from headway.server.fields.refused import Refused
from headway.server.messages_api.content import AssistantMessage, Message, TextBlock, TextBlocks, chat_messages


class Tool(TolerantModel):
    """A tool of the client. input_schema: a JSON schema of its input. strict: calls keep to it."""

    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """The tool in the form of chat completions."""
        function: dict[str, Any] = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            function["description"] = self.description
        if self.strict is not None:
            function["strict"] = self.strict
        return {"type": "function", "function": function}


class OtherTool(ToolOfTheServer):
    """A tool of any other type."""

    instead = "tools with a name and an input_schema, which the client runs itself"


AnyTool = Annotated[
    Annotated[Tool, Tag("#custom")] | Annotated[OtherTool, Tag("#other")],
    Discriminator(
        lambda tool: "#other" if isinstance(tool, dict) and tool.get("type") not in (None, "custom") else "#custom"
    ),
]


class ToolChoice(TolerantModel):
    """any: some tool is called; tool: the tool of this name."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"enum": ["auto", "any", "none"]}}},
                {"properties": {"name": {"type": "string"}}, "required": ["name"]},
            ]
        }
    )

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> ToolChoice:
        if self.type == "tool" and self.name is None:
            raise ValueError("tool_choice of type 'tool' needs the field 'name'")
        return self

    def for_chat(self) -> dict[str, Any]:
        """The fields `tool_choice` and `parallel_tool_calls` of a chat completion."""
        choice: Any = {"auto": "auto", "any": "required", "none": "none"}.get(self.type)
        if choice is None:
            choice = {"type": "function", "function": {"name": self.name}}
        fields = {"tool_choice": choice}
        if self.disable_parallel_tool_use is not None:
            fields["parallel_tool_calls"] = not self.disable_parallel_tool_use
        return fields


class Thinking(TolerantModel):
    """Whether the model thinks before it answers: a variable of its chat template. budget_tokens: at most so many."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None


class OutputFormat(TolerantModel):
    """The answer is JSON of this schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(TolerantModel):
    effort: ReasoningEffort | None = None
    format: OutputFormat | None = None


class CountTokensRequest(AsksForChat):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True), AtMost(MAX_MESSAGES, "messages"), Field(min_length=1)]
    system: str | TextBlocks | None = None
    tools: Annotated[list[AnyTool] | None, Field(fail_fast=True), AtMost(MAX_TOOLS, "tools")] = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_control: Any = None  # equal prompts are found in the cache without a mark
    mcp_servers: Annotated[Any, Refused("no tool runs on this server")] = None
    container: Annotated[Any, Refused("no tool runs on this server")] = None

    def _chat_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"model": self.model, "messages": chat_messages(self.system, self.messages)}
        if self._prefilled:
            fields |= {"add_generation_prompt": False, "continue_final_message": True}
        if self.tools:
            fields["tools"] = [tool.for_chat() for tool in self.tools if isinstance(tool, Tool)]
        if self.tool_choice is not None:
            fields |= self.tool_choice.for_chat()
        variables = dict(self.chat_template_kwargs or {})
        if self.thinking is not None:
            variables.setdefault("enable_thinking", self.thinking.type != "disabled")
        if variables:
            fields["chat_template_kwargs"] = variables
        if self.output_config is not None:
            if self.output_config.effort is not None:
                fields["reasoning_effort"] = self.output_config.effort
            if (form := self.output_config.format) is not None:
                fields["response_format"] = {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": form.schema_, "strict": True},
                }
        return fields

    @property
    def _prefilled(self) -> bool:
        """Whether the conversation ends with the beginning of the answer."""
        last = self.messages[-1]
        if not isinstance(last, AssistantMessage):
            return False
        return isinstance(last.content, str) or all(isinstance(block, TextBlock) for block in last.content)


class MessagesRequest(CountTokensRequest, GenerationRequest):
    """POST /v1/messages. It also takes vLLM's fields of sampling."""

    n: Literal[1] | None = None  # a message has one answer
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)]
    stop_sequences: Annotated[list[Annotated[str, Field(min_length=1)]] | None, AtMost(MAX_STOP_STRINGS, "strings")] = (
        None
    )
    metadata: dict[str, Any] | None = None  # any values: nothing reads them
    thread: Annotated[Any, WithJsonSchema({"type": "null"})] = None  # see `refuse_thread`

    def refuse_thread(self) -> None:
        """Raises ApiError for a conversation that the server should keep. Clients send it whole after that."""
        if self.thread is not None:
            raise ApiError(
                400,
                "thread is not served: no message is stored here; send all messages of the conversation",
                param="thread",
                details={"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
            )

    @model_validator(mode="after")
    def _check(self) -> MessagesRequest:
        if self.thinking_budget is not None and self.thinking_budget >= self.max_tokens:
            raise ValueError(
                f"thinking.budget_tokens ({self.thinking_budget}) must be less than max_tokens ({self.max_tokens})"
            )
        return self

    @property
    def thinking_budget(self) -> int | None:
        """After so many tokens the model ends its thinking; None: it has no limit."""
        return None if self.thinking is None else self.thinking.budget_tokens

    def _chat_fields(self) -> dict[str, Any]:
        shared = self.model_fields_set & (GenerationRequest.model_fields.keys() - {"metadata"})
        fields = {name: getattr(self, name) for name in shared} | super()._chat_fields()
        if self.stop_sequences:
            fields["stop"] = self.stop_sequences
        return {**fields, "max_tokens": self.max_tokens}
