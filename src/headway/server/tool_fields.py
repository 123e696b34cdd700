"""The fields of a body about tools that the model may call."""

from __future__ import annotations

from typing import Annotated, Any

from headway.client.conversation import StrictModel
from headway.client.field_rules import Unsupported


class ToolFields(StrictModel):
    """Chat completions have these fields."""

    tools: Annotated[Any, Unsupported()] = None
    tool_choice: Annotated[Any, Unsupported("none")] = None
    parallel_tool_calls: Any = None
    functions: Annotated[Any, Unsupported()] = None
    function_call: Annotated[Any, Unsupported("none")] = None
