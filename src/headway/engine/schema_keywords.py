"""What becomes of a JSON schema before xgrammar makes a grammar of it.

xgrammar leaves some keywords out without a word, and an answer could then break the schema that it was asked for: a
schema with such a keyword is refused by name. And xgrammar takes an object of which nothing is said for an empty one,
and likewise a list: here both stay open, as the standard has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from headway.errors import RequestError

_LEFT_OUT = (
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "multipleOf"),
    *("contains", "minContains", "maxContains", "$dynamicRef", "unevaluatedItems"),
)
_OF_ONE_SCHEMA = ("additionalProperties", "items", "additionalItems", "propertyNames", "unevaluatedProperties")
_OF_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")
_CHOICES = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
# Beside one of `_CHOICES` these are left out.
_CONSTRAINTS = (
    *("properties", "patternProperties", "required", "additionalProperties", "minProperties", "maxProperties"),
    *("items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
)
_OF_OBJECTS = ("properties", "patternProperties", "propertyNames", "additionalProperties", "unevaluatedProperties")
_OF_A_TYPE = ("minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# What a pattern says is written into the answer as it is, and these two would need a backslash before them there.
_EXCLUDED = re.compile(r"\[\^[^\]]*\]")
_NEEDS_ESCAPES = re.compile(r'"|\\\\')


def prepare(schema: Any) -> None:
    """Bring a schema to the form in which a grammar keeps to all of it, in place. Raises RequestError, naming keyword
    and place, for a schema that a grammar would keep to in part alone."""
    left: list[tuple[str, Any]] = [("", schema)]
    while left:
        path, one = left.pop()
        if isinstance(one, dict):
            for what in _problems(one):
                raise RequestError(f"the JSON schema cannot be kept to at #{path}: {what}")
            left += _inner(path, one)
            _open(one)


def prepare_tag(tag: Any) -> None:
    """`prepare` each schema in a structural tag."""
    left: list[Any] = [tag]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            for name, value in one.items():
                if name in ("json_schema", "schema"):
                    prepare(value)
                else:
                    left.append(value)
        elif isinstance(one, list):
            left += one


def _open(schema: dict[str, Any]) -> None:
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if any(name in schema for name in _CHOICES):
        return
    if "object" in kinds and not any(name in schema for name in _OF_OBJECTS):
        schema["additionalProperties"] = True
    if "array" in kinds and not any(name in schema for name in ("items", "prefixItems")):
        schema["items"] = {}


def _problems(schema: dict[str, Any]) -> Iterator[str]:
    for name in _LEFT_OUT:
        if name in schema:
            yield f"{name!r} is not supported"
    if schema.get("uniqueItems"):
        yield "'uniqueItems' is not supported"
    if len(_listed(schema, "allOf")) > 1:
        yield "'allOf' of several schemas is not supported: write them as one"
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref != "#" and not ref.startswith("#/"):
        yield f"'$ref' to {ref[:100]!r} is not supported: only places of the same schema, as '#/$defs/name'"
    choice = next((name for name in _CHOICES if name in schema), None)
    beside = next((name for name in (*_CONSTRAINTS, *_CHOICES) if name in schema and name != choice), None)
    if choice is not None and beside is not None:
        yield f"{beside!r} beside {choice!r} is not supported"
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and _NEEDS_ESCAPES.search(_EXCLUDED.sub("", pattern)):
        yield "'pattern' with a quotation mark or a backslash in the text is not supported"
    if "pattern" in schema and ("minLength" in schema or "maxLength" in schema):
        yield "'pattern' together with 'minLength' or 'maxLength' is not supported"
    untyped = next((name for name in _OF_A_TYPE if name in schema), None)
    if "type" not in schema and untyped is not None:
        yield f"{untyped!r} needs a 'type' beside it"
    yield from _problems_of_objects(schema)


def _problems_of_objects(schema: dict[str, Any]) -> Iterator[str]:
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    for name in _listed(schema, "required"):
        if name not in known:
            yield f"'required' names {str(name)[:100]!r}, which 'properties' does not have"
    patterns = schema.get("patternProperties")
    if isinstance(patterns, dict) and patterns and (known or len(patterns) > 1):
        yield "'patternProperties' beside 'properties', or with several patterns, is not supported"
    if "propertyNames" in schema and (known or patterns):
        yield "'propertyNames' beside 'properties' or 'patternProperties' is not supported"


def _listed(schema: dict[str, Any], name: str) -> list[Any]:
    value = schema.get(name)
    return value if isinstance(value, list) else []


def _inner(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas inside of a schema, each with its place."""
    for name in _OF_ONE_SCHEMA:
        if name in schema:
            yield f"{path}/{name}", schema[name]
    for name in _OF_MANY:
        for index, one in enumerate(_listed(schema, name)):
            yield f"{path}/{name}/{index}", one
    for name in _OF_NAMES:
        named = schema.get(name)
        if isinstance(named, dict):
            for key, one in named.items():
                yield f"{path}/{name}/{key[:100]}", one
