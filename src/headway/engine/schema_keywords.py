"""What becomes of a JSON schema before xgrammar makes a grammar of it.

xgrammar leaves some keywords out without a word, and an answer could then break the schema that it was asked for: a
schema with such a keyword is refused by name. And xgrammar takes an object of which nothing is said for an empty one,
and likewise a list: here both stay open, as the standard has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
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
_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == int(value),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
# What a pattern says is written into the answer as it is, and these two would need a backslash before them there.
_EXCLUDED = re.compile(r"\[\^[^\]]*\]")
_LOOKS_AROUND = re.compile(r"(?<!\\)\(\?<?[=!]")
_BOUNDS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NEEDS_ESCAPES = re.compile(r'"|\\\\')


def prepare(schema: Any) -> None:
    """Bring a schema to the form in which a grammar keeps to all of it, in place. Raises RequestError, naming keyword
    and place, for a schema that a grammar would keep to in part alone."""
    left: list[tuple[str, Any]] = [("", schema)]
    seen: set[int] = set()  # a '$ref' may lead to a schema again
    while left:
        path, one = left.pop()
        if isinstance(one, dict) and id(one) not in seen:
            seen.add(id(one))
            for what in _problems(one):
                raise RequestError(f"the JSON schema cannot be kept to at #{path}: {what}")
            left += _inner(path, one)
            left += _target(schema, one)
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
    if isinstance(schema.get("enum"), list):
        schema["enum"] = [value for value in schema["enum"] if _is_of(kind, value)]
    for _, one in _branches(schema):
        if kind is not None and not any(name in one for name in ("type", *_CHOICES)):
            one["type"] = kind
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
    yield from _problems_of_texts(schema)
    yield from _problems_of_values(schema)
    yield from _problems_of_objects(schema)


def _problems_of_texts(schema: dict[str, Any]) -> Iterator[str]:
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and _LOOKS_AROUND.search(pattern):
        yield "'pattern' that looks ahead or back is not supported"
    if isinstance(pattern, str) and _NEEDS_ESCAPES.search(_EXCLUDED.sub("", pattern)):
        yield "'pattern' with a quotation mark or a backslash in the text is not supported"
    if "pattern" in schema and ("minLength" in schema or "maxLength" in schema):
        yield "'pattern' together with 'minLength' or 'maxLength' is not supported"
    untyped = next((name for name in _OF_A_TYPE if name in schema), None)
    if "type" not in schema and untyped is not None:
        yield f"{untyped!r} needs a 'type' beside it"


def _problems_of_values(schema: dict[str, Any]) -> Iterator[str]:
    """What leaves no value at all, and xgrammar does not see."""
    empty = next((name for name in (*_OF_MANY, "type") if schema.get(name) == []), None)
    if empty is not None:
        yield f"{empty!r} is an empty list, which leaves no value"
    below = next((name for name in _BOUNDS if _is_below_zero(schema.get(name))), None)
    if below is not None:
        yield f"{below!r} must be at least 0, got {schema[below]}"
    for place, one in _branches(schema):
        if not _meet(schema.get("type"), one.get("type")):
            yield f"the 'type' of {place} is not among the 'type' beside it"
    name = "const" if "const" in schema else "enum"
    given = [schema["const"]] if "const" in schema else _listed(schema, "enum")
    if given and not any(_is_of(schema.get("type"), value) for value in given):
        yield f"{name!r} has no value of the 'type' beside it"


def _problems_of_objects(schema: dict[str, Any]) -> Iterator[str]:
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    for name in _listed(schema, "required"):
        if name not in known:
            yield f"'required' names {str(name)[:100]!r}, which 'properties' does not have"
    patterns = schema.get("patternProperties")
    if isinstance(patterns, dict) and any(_LOOKS_AROUND.search(pattern) for pattern in patterns):
        yield "'patternProperties' that look ahead or back are not supported"
    if isinstance(patterns, dict) and patterns and (known or len(patterns) > 1):
        yield "'patternProperties' beside 'properties', or with several patterns, is not supported"
    if "propertyNames" in schema and (known or patterns):
        yield "'propertyNames' beside 'properties' or 'patternProperties' is not supported"


def _branches(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas that a value may choose among, or must meet, each with its place."""
    for name in ("anyOf", "oneOf", "allOf"):
        for index, one in enumerate(_listed(schema, name)):
            if isinstance(one, dict):
                yield f"{name}/{index}", one


def _meet(outer: Any, inner: Any) -> bool:
    """Whether all values of the types `inner` are of the types `outer`; True where either is not given."""
    if outer is None or inner is None:
        return True
    around = outer if isinstance(outer, list) else [outer]
    within = inner if isinstance(inner, list) else [inner]
    return all(one in around or (one == "integer" and "number" in around) for one in within)


def _is_below_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value < 0


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a value is of a type, or of one of several. A type that is not known is refused elsewhere."""
    if kind is None:
        return True
    kinds = kind if isinstance(kind, list) else [kind]
    return any(not isinstance(one, str) or one not in _TYPES or _TYPES[one](value) for one in kinds)


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


def _target(root: Any, schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Where the '$ref' of a schema leads, with the place; nowhere if there is no such place, which xgrammar says."""
    ref = schema.get("$ref")
    if not isinstance(ref, str) or not ref.startswith("#/"):
        return
    place: Any = root
    for step in ref.removeprefix("#/").split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and name.isdecimal() and int(name) < len(place):
            place = place[int(name)]
        elif isinstance(place, dict) and name in place:
            place = place[name]
        else:
            return
    yield ref.removeprefix("#")[:300], place
