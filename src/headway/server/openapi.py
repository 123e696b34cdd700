"""The statuses that each route may answer with, and the model, for the document at /openapi.json."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

_MEANINGS = {
    400: "The request is not valid; the message names field and value.",
    401: "The request shows no key that is valid here.",
    403: "The route is off, or only for the server's own host.",
    404: "There is no such model or path.",
    408: "The body was not complete in time.",
    409: "The request id is in use, or the engine has another role.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    500: "The answer could not be computed.",
    503: "The server is stopping, paused, full, or its engine is dead.",
    504: "The engine did not answer in time.",
}
_BODY = (400, 404, 408, 413, 415)
_ENGINE = (400, 403, 409, 503, 504)
_STATUSES = {
    "/v1/completions": (*_BODY, 409, 500, 503),
    "/v1/chat/completions": (*_BODY, 409, 500, 503),
    "/v1/responses": (*_BODY, 409, 500, 503),
    "/v1/messages": (*_BODY, 409, 500, 503),
    "/v1/messages/count_tokens": (*_BODY, 503),
    "/v1/completions/render": (*_BODY, 503),
    "/v1/chat/completions/render": (*_BODY, 503),
    "/tokenize": _BODY,
    "/detokenize": _BODY,
    "/v1/models/{model}": (404,),
    "/health": (503,),
    "/server_info": (400,),
    "/pause": _ENGINE,
    "/resume": _ENGINE,
    "/is_paused": _ENGINE,
    "/reset_prefix_cache": _ENGINE,
    "/debug/ownership": (403, 409, 503, 504),
}
_STREAMS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": {}, "code": {}},
        }
    },
}
_ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


def body_of(model: type[Any], *more: type[Any]) -> dict[str, Any]:
    """OpenAPI's description of a body that the route reads itself: it is one of these models."""
    schemas = [{"$ref": f"#/components/schemas/{body.__name__}"} for body in (model, *more)]
    schema = schemas[0] if not more else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe_answers(document: dict[str, Any]) -> None:
    """Write the statuses of every route into an OpenAPI document."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Error"], schemas["AnthropicError"] = _ERROR, _ANTHROPIC_ERROR
    for path, methods in document["paths"].items():
        for operation in methods.values():
            responses = operation["responses"]
            responses.pop("422", None)  # FastAPI's own checks take no part: the routes read their bodies themselves
            for status in _STATUSES.get(path, ()):
                responses[str(status)] = _error(path, status)
            if path == "/metrics":
                responses["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
            elif path in _STREAMS:
                responses["200"]["content"]["text/event-stream"] = {}


def describe_key(document: dict[str, Any], open_paths: Collection[str]) -> None:
    """Write into an OpenAPI document that all paths but the open ones ask for a key."""
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        for operation in methods.values() if path not in open_paths else ():
            operation["security"] = [{"key": []}]
            operation["responses"]["401"] = _error(path, 401)


def _error(path: str, status: int) -> dict[str, Any]:
    form = "AnthropicError" if path.startswith("/v1/messages") else "Error"
    schema = {"$ref": f"#/components/schemas/{form}"}
    return {"description": _MEANINGS[status], "content": {"application/json": {"schema": schema}}}


def describe_model(document: dict[str, Any], model_names: Sequence[str]) -> None:
    """Write the names of the model that is served into an OpenAPI document: other names are a 404."""
    for schema in document["components"]["schemas"].values():
        if (field := schema.get("properties", {}).get("model")) is not None:
            field.pop("anyOf")
            field["enum"] = [*model_names, None]
    (parameter,) = document["paths"]["/v1/models/{model}"]["get"]["parameters"]
    parameter["schema"]["enum"] = list(model_names)
