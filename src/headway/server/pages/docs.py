"""GET /docs: the document at /openapi.json, for people. It needs no script, and so no other host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from markupsafe import Markup, escape

from headway import __version__
from headway.server.pages.page import page
from headway.server.service import service_of

Json = dict[str, Any]
_LONG = 2**31 - 1  # limits of numbers that only say that they cross in 32 bits


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path. bodies: the names of the schemas that its body may have. answers: status and meaning."""

    id: str
    method: str
    path: str
    text: str
    bodies: list[str]
    answers: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a schema. type: in HTML, with links to other schemas."""

    name: str
    type: Markup
    required: bool
    text: str


@dataclass(frozen=True, slots=True)
class Schema:
    """A body, or a part of one."""

    name: str
    text: str
    fields: list[Field]


def docs_page(request: Request) -> Response:
    """The page of this server's document."""
    document = request.app.openapi()
    return page(
        "docs.html",
        request,
        version=__version__,
        model=service_of(request).model_name,
        operations=list(operations(document)),
        schemas=list(schemas(document)),
    )


def operations(document: Json) -> Iterator[Operation]:
    """All methods of all paths."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield Operation(
                operation["operationId"],
                method.upper(),
                path,
                operation.get("description", "").partition("\n")[0],
                _bodies(operation),
                [(status, answer["description"]) for status, answer in sorted(operation["responses"].items())],
            )


def _bodies(operation: Json) -> list[str]:
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    return [_name(one["$ref"]) for one in schema.get("anyOf", [schema]) if "$ref" in one]


def schemas(document: Json) -> Iterator[Schema]:
    """All bodies and their parts, by name."""
    for name, schema in sorted(document["components"]["schemas"].items()):
        required = schema.get("required", ())
        fields = [
            Field(field, type_of(inner), field in required, _text(inner))
            for field, inner in schema.get("properties", {}).items()
        ]
        yield Schema(name, " ".join(schema.get("description", "").split()), fields)


def _text(schema: Json) -> str:
    text = str(schema.get("description", ""))
    if schema.get("default") is None:
        return text
    return f"{text} By default {schema['default']!r}.".strip()


def type_of(schema: Json) -> Markup:
    """The type of a value, in HTML."""
    if "$ref" in schema:
        return Markup('<a href="#{0}">{0}</a>').format(_name(schema["$ref"]))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            kinds = dict.fromkeys(type_of(one) for one in schema[key] if one.get("type") != "null")
            return Markup(" or ").join(kinds)
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return Markup(", ").join(Markup("<code>{}</code>").format(repr(one)) for one in values if one is not None)
    match schema.get("type"):
        case "array":
            return Markup("list of {}").format(type_of(schema.get("items", {})))
        case "object":
            return escape("object")
        case str() as kind:
            return escape(kind + _range(schema))
    return escape("any value")


def _range(schema: Json) -> str:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum")
    if high is not None and high < _LONG:
        return f" from {low} to {high}"
    return f" from {low}" if low is not None and low > -_LONG else ""


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]
