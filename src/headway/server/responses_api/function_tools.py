"""The tools of a request for a response: functions of the client. Tools that a server would run are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from headway.client.tools import Name, TolerantModel
from headway.server.fields.chat_asking import ToolOfTheServer


class FunctionTool(TolerantModel):
    """parameters: a JSON schema of the arguments. strict: calls keep to it."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """The tool in the form of chat completions."""
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class OtherTool(ToolOfTheServer):
    """A tool of any other type."""

    instead = "tools of type 'function', which the client runs itself"


Tool = Annotated[
    Annotated[FunctionTool, Tag("#function")] | Annotated[OtherTool, Tag("#other")],
    Discriminator(
        lambda tool: "#function" if not isinstance(tool, dict) or tool.get("type") == "function" else "#other"
    ),
]


class NamedFunction(TolerantModel):
    """tool_choice: this function is called."""

    type: Literal["function"]
    name: Name


class AllowedTools(TolerantModel):
    """tool_choice: only these tools are offered."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(fail_fast=True)]


class OtherChoice(TolerantModel):
    """A choice of any other type is refused."""

    model_config = ConfigDict(json_schema_extra={"not": {}})

    type: Any = None

    @model_validator(mode="after")
    def _refuse(self) -> OtherChoice:
        raise ValueError(
            f"tool_choice of type {self.type!r:.60} is not served: it is 'none', 'auto', 'required', or an object of "
            "type 'function' or 'allowed_tools'"
        )


def _kind(choice: Any) -> str:
    if not isinstance(choice, dict):
        return "#word"
    kind = choice.get("type")
    return f"#{kind}" if kind in ("function", "allowed_tools") else "#other"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("#word")]
    | Annotated[NamedFunction, Tag("#function")]
    | Annotated[AllowedTools, Tag("#allowed_tools")]
    | Annotated[OtherChoice, Tag("#other")],
    Discriminator(_kind),
]


def tools_for_chat(tools: list[Any] | None, choice: Any) -> dict[str, Any]:
    """The fields `tools` and `tool_choice` of a chat completion. Raises ValueError for allowed tools that are not
    given."""
    if not tools:
        return {} if choice is None else {"tool_choice": _word_or_named(choice)}
    fields: dict[str, Any] = {"tools": [tool.for_chat() for tool in tools]}
    if isinstance(choice, AllowedTools):
        allowed = {tool.name for tool in choice.tools}
        if missing := sorted(allowed - {tool.name for tool in tools}):
            raise ValueError(f"tool_choice allows the function {missing[0]!r:.100}, which is not among the tools")
        fields["tools"] = [tool.for_chat() for tool in tools if tool.name in allowed]
        fields["tool_choice"] = choice.mode
    elif choice is not None:
        fields["tool_choice"] = _word_or_named(choice)
    return fields


def _word_or_named(choice: Any) -> Any:
    if isinstance(choice, NamedFunction):
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode if isinstance(choice, AllowedTools) else choice
