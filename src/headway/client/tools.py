"""The tools that a model may call, and the calls in a conversation's history."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from headway.client.strict_model import StrictModel

MAX_TOOLS = 1024
MAX_CALLS = 1024  # in one message
Name = Annotated[str, Field(min_length=1, max_length=256)]


class TolerantModel(StrictModel):
    """A record that ignores unknown fields and converts no types: clients send back what other servers have added."""

    model_config = ConfigDict(extra="ignore", strict=True)


class FunctionTool(TolerantModel):
    """parameters: the JSON schema of the arguments. strict: calls meet it always."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(TolerantModel):
    """A function that the client can call for the model."""

    type: Literal["function"] = "function"
    function: FunctionTool

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """The JSON schema of the arguments, which are an object; of a tool without parameters: without properties."""
        if not self.function.parameters:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.function.parameters}

    def for_template(self) -> dict[str, Any]:
        """The tool in the form of chat templates."""
        function = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": self.type, "function": function}


class CalledFunction(TolerantModel):
    """arguments: JSON text that is an object becomes that object, since chat templates take it so. Other text stays as
    it is, and so does JSON with half of a surrogate pair, which no prompt can have: a model may have written it, and
    the conversation has to go on."""

    name: Name
    arguments: str | dict[str, Any] = ""

    @field_validator("arguments", mode="after")
    @classmethod
    def _read(cls, arguments: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(arguments, dict):
            return arguments
        if not arguments.strip():
            return {}
        try:
            value = json.loads(arguments)
            json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            return arguments
        return value if isinstance(value, dict) else arguments


class Call(TolerantModel):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """The call in the form of chat templates."""
        return self.model_dump(exclude_none=True)


def changed(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON value in which `change` has been applied to every text, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): changed(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [changed(item, change) for item in value]
    return value
