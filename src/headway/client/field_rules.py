"""Rules for the fields of bodies that check a value, and describe it in the JSON schema that documents the body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

NOTHING: JsonSchemaValue = {"type": "null"}
OFF: JsonSchemaValue = {"enum": [False, None]}
ON: JsonSchemaValue = {"const": True}


@dataclass(frozen=True)
class AtMost:
    """Refuses a list or an object of more items, before any item is looked at. what: the items, in the message."""

    limit: int
    what: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        for kind in described.get("anyOf", [described]):
            if (name := {"array": "maxItems", "object": "maxProperties"}.get(kind.get("type"))) is not None:
                kind[name] = self.limit
        return described

    def _check(self, value: Any) -> Any:
        if isinstance(value, list | tuple | dict) and len(value) > self.limit:
            raise ValueError(f"at most {self.limit} {self.what} are taken, got {len(value)}")
        return value


class Unsupported:
    """Refuses a field that Headway does not support, unless its value is empty (None, [] or {}) or asks for nothing.

    values: the values that ask for nothing.
    """

    def __init__(self, *values: Any) -> None:
        self._taken = [None, [], {}, *values]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": self._taken}

    def _check(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        if not any(type(value) is type(taken) and value == taken for taken in self._taken):
            raise ValueError(f"{info.field_name} is not supported: leave it out")
        return value


def any_of(*alternatives: dict[str, JsonSchemaValue]) -> JsonSchemaValue:
    """The JSON schema of an object that meets one of the alternatives, for a rule about several fields that its model
    checks. An alternative: schemas by field. A field may be left out if its schema is `NOTHING` or `OFF`."""
    return {
        "anyOf": [
            {
                "properties": fields,
                "required": [name for name, schema in fields.items() if schema not in (NOTHING, OFF)],
            }
            for fields in alternatives
        ]
    }
