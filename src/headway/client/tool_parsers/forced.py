"""Calls that a grammar makes the model write: their form is the same for every model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headway.client.tool_parsers.json_tool_parser import JsonToolParser


class RequiredCalls(JsonToolParser):
    """The answer is a list of {"name": ..., "parameters": {...}}, of at least one."""

    is_forced = True

    @staticmethod
    def schema(schemas: Mapping[str, Any], *, parallel: bool) -> dict[str, Any]:
        """The JSON schema of such an answer. schemas: of the arguments of each tool. parallel: several calls may be
        made."""
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "enum": [name]},
                    "parameters": {"$ref": f"#/$defs/{number}"},
                },
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
            for number, name in enumerate(schemas)
        ]
        whole: dict[str, Any] = {
            "type": "array",
            "minItems": 1,
            "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
            "$defs": {
                str(number): _moved(schema, f"#/$defs/{number}") for number, schema in enumerate(schemas.values())
            },
        }
        return whole if parallel else {**whole, "maxItems": 1}

    def _begin(self, text: str, at: int) -> int:
        at = self._skip_space(text, at)
        if at == len(text):
            return at
        if text[at] != "[":
            self._state = self._say_all
            return at
        self._begin_call("[")
        return at + 1

    def _after_call(self, text: str, at: int) -> int:
        at = self._skip_space(text, at)
        if at == len(text):
            return at
        if text[at] == ",":
            self._begin_call()
        elif text[at] == "]":
            self._state = self._say_all
        else:
            self._state = self._say_all
            return at
        return at + 1

    _after_no_call = JsonToolParser._say_all


class NamedCall(JsonToolParser):
    """The answer is the arguments of one tool, the only one of `names`."""

    is_forced = is_named = True

    def _begin(self, text: str, at: int) -> int:
        at = self._skip_space(text, at)
        if at < len(text):
            (name,) = self.names
            self._begin_call(name=name)
        return at

    _after_call = _after_no_call = JsonToolParser._say_all


def _moved(schema: Any, place: str) -> Any:
    """A schema that stands at `place` in another: what it refers to within itself stands there too."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }
