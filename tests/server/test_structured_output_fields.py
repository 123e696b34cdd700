"""The fields that ask for a form: what the engine is told of each, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headway.request import FinishReason
from headway.scheduler.effects import RequestEnd
from headway.structured_outputs import StructuredOutputs
from headway.wire import to_client, to_engine
from tests.server.conftest import Api

SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}}
TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}],
    "triggers": ["<a>"],
}
PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
}
FORMS: list[tuple[dict[str, Any], StructuredOutputs | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, StructuredOutputs(json_object=True)),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        StructuredOutputs(json=SCHEMA),
    ),
    ({"response_format": TAG}, StructuredOutputs(structural_tag=json.dumps(TAG))),
    ({"structured_outputs": {"json": SCHEMA}}, StructuredOutputs(json=SCHEMA)),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, StructuredOutputs(json=SCHEMA)),
    ({"structured_outputs": {"json": {}}}, StructuredOutputs(json={})),
    ({"structured_outputs": {"regex": "a+"}}, StructuredOutputs(regex="a+")),
    ({"structured_outputs": {"choice": ["a", "b"]}}, StructuredOutputs(choice=("a", "b"))),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}}, StructuredOutputs(grammar='root ::= "a"')),
    ({"structured_outputs": {"json_object": True}}, StructuredOutputs(json_object=True)),
    ({"structured_outputs": {"structural_tag": json.dumps(TAG)}}, StructuredOutputs(structural_tag=json.dumps(TAG))),
    ({"structured_outputs": {"json_object": False, "json": None, "choice": None}}, None),
    ({"structured_outputs": {}}, None),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        StructuredOutputs(json=SCHEMA, disable_any_whitespace=True),
    ),
    ({"guided_json": SCHEMA}, StructuredOutputs(json=SCHEMA)),
    ({"guided_json": json.dumps(SCHEMA)}, StructuredOutputs(json=SCHEMA)),
    ({"guided_regex": "a+"}, StructuredOutputs(regex="a+")),
    ({"guided_choice": ["a", "b"]}, StructuredOutputs(choice=("a", "b"))),
    ({"guided_grammar": 'root ::= "a"'}, StructuredOutputs(grammar='root ::= "a"')),
    ({"guided_json": None, "response_format": None}, None),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("fields", "form"), FORMS)
async def test_each_field_asks_the_engine_for_its_form(
    api: Api, path: str, fields: dict[str, Any], form: StructuredOutputs | None
) -> None:
    response = await api.post(path, json={**PATHS[path], **fields, "max_tokens": 2})
    assert response.status_code == 200, response.text
    (group,) = api.link.sent_of(to_engine.AddGroup)
    assert group.requests[0].sampling.structured_outputs == form


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format and guided_regex"),
        (
            {"guided_json": {}, "structured_outputs": {"choice": ["a"]}},
            "structured_outputs and guided_json",
        ),
        ({"guided_choice": ["a"], "guided_grammar": "x"}, "guided_choice and guided_grammar"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "got json and regex"),
        ({"response_format": {"type": "json_schema"}}, "json_schema.schema"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"structured_outputs": {"json": "{"}}, "json is not valid JSON"),
        ({"guided_json": {"const": "x" * 2**18}}, "at most 262144"),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": " ?"}}, "whitespace_pattern is not supported"),
    ],
)
async def test_what_cannot_be_a_form_is_a_400_that_names_it(
    api: Api, path: str, fields: dict[str, Any], names: str
) -> None:
    response = await api.post(path, json={**PATHS[path], **fields})
    assert response.status_code == 400 and names in response.json()["error"]["message"], response.text
    assert not api.link.sent_of(to_engine.AddGroup)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_form_that_the_engine_cannot_compile_is_a_400_before_the_first_byte(api: Api, stream: bool) -> None:
    api.link.silent = True
    send = api.link.send

    def refuse(message: to_engine.ToEngine) -> None:
        send(message)
        if isinstance(message, to_engine.AddGroup):
            (request,) = message.requests
            assert request.uid is not None
            why = "structured_outputs: the regex cannot be compiled: position 2"
            end = RequestEnd(request.uid, request.request_id, FinishReason.ERROR, error=why, refused=True)
            api.link.say(to_client.Step([], [], [end]))

    api.link.send = refuse  # type: ignore[method-assign]
    response = await api.post("/v1/completions", json={"prompt": "a", "guided_regex": "(", "stream": stream})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and "position 2" in error["message"]
