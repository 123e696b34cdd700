"""The fields of a body about tools that the model may call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import model_validator

from headway.client.conversation import Conversation
from headway.client.field_rules import NOTHING, Unsupported, any_of
from headway.client.strict_model import StrictModel
from headway.client.tools import Name, TolerantModel, Tool

CALLS_NEED_TOOLS = any_of(
    {"tool_choice": {"enum": [None, "none", "auto"]}},
    {"tool_choice": NOTHING},
    {"tools": {"type": "array", "minItems": 1}},
)


class NamedFunction(TolerantModel):
    name: Name


class NamedTool(TolerantModel):
    """The model has to call this tool."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ToolFields(StrictModel):
    """Chat completions have these fields, and `tools` with all conversations.

    tool_choice: none: no call is looked for; auto: the model decides, which is the default with tools; required: it has
        to call at least one tool; a tool: it has to call this one, once.
    parallel_tool_calls: false: at most one call in an answer.
    """

    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Any, Unsupported()] = None
    function_call: Annotated[Any, Unsupported("none", "auto")] = None


class ToolConversation(Conversation, ToolFields):
    """A conversation, and how the model may use its tools."""

    @model_validator(mode="after")
    def _choice_needs_tools(self) -> ToolConversation:
        choice = self.tool_choice
        if choice in (None, "none", "auto"):
            return self
        if not self.tools:
            raise ValueError("tool_choice asks for a call, and there are no tools: give tools")
        if isinstance(choice, NamedTool) and self.called_tool is None:
            names = ", ".join(tool.function.name for tool in self.tools)
            raise ValueError(
                f"tool_choice names {choice.function.name!r:.100}, which is none of the tools ({names:.1000})"
            )
        return self

    @property
    def called_tool(self) -> Tool | None:
        """The tool that has to be called; None: no tool is named."""
        if not isinstance(self.tool_choice, NamedTool):
            return None
        name = self.tool_choice.function.name
        return next((tool for tool in self.tools or () if tool.function.name == name), None)

    @property
    def use_of_tools(self) -> Literal["none", "auto", "required", "named"]:
        """What the model may do with tools."""
        if not self.tools or self.tool_choice == "none":
            return "none"
        if isinstance(self.tool_choice, NamedTool):
            return "named"
        return self.tool_choice or "auto"
