"""The record of the form of an answer: exactly one form, of bounded size, and what it says when it is neither."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from headway import RequestError, SamplingParams, StructuredOutputs
from headway.structured_outputs import KINDS, MAX_BYTES, MAX_CHOICES, MAX_DEPTH, MAX_STARTS_AFTER

ONE_OF_EACH = {
    "json": {"type": "object"},
    "json_object": True,
    "regex": "[0-9]+",
    "choice": ("yes", "no"),
    "grammar": 'root ::= "a"',
    "structural_tag": '{"type": "structural_tag", "format": {"type": "any_text"}}',
}


def nested(depth: int) -> dict:
    schema: dict = {}
    for _ in range(depth - 1):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize("kind", KINDS)
def test_each_form_is_taken_alone(kind: str) -> None:
    form = StructuredOutputs(**{kind: ONE_OF_EACH[kind]})
    assert form.kind == kind
    assert form.text


def test_no_form_and_two_forms_are_refused_by_their_names() -> None:
    with pytest.raises(RequestError, match="got none"):
        StructuredOutputs()
    with pytest.raises(RequestError, match="got json and regex"):
        StructuredOutputs(json={}, regex="a")


def test_a_schema_keeps_the_order_of_its_keys_and_is_the_same_as_a_dict_and_as_text() -> None:
    schema = {"properties": {"z": {}, "a": {}}}
    assert StructuredOutputs(json=schema) == StructuredOutputs(json=json.dumps(schema))
    assert list(json.loads(StructuredOutputs(json=schema).text)["properties"]) == ["z", "a"]


def test_a_form_does_not_change_with_the_dict_that_it_was_made_of() -> None:
    schema = {"type": "object"}
    form = StructuredOutputs(json=schema)
    schema["type"] = "string"
    assert json.loads(form.text) == {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"json": "{"}, "json is not valid JSON"),
        ({"json": "[1]"}, "must be a JSON schema"),
        ({"json": "[" * 100_000}, "nested"),
        ({"json": {"const": float("nan")}}, "cannot be written as JSON"),
        ({"json": {"description": "x" * MAX_BYTES}}, f"at most {MAX_BYTES}"),
        ({"json": nested(MAX_DEPTH + 1)}, f"more than {MAX_DEPTH} levels"),
        ({"regex": ""}, "regex must be a text that is not empty"),
        ({"regex": "x" * (MAX_BYTES + 1)}, f"regex has {MAX_BYTES + 1} bytes"),
        ({"regex": "\ud800"}, "UTF-8"),
        ({"grammar": 5}, "grammar must be a text"),
        ({"choice": "yes"}, "choice must be a list"),
        ({"choice": []}, f"1 to {MAX_CHOICES}"),
        ({"choice": ["a"] * (MAX_CHOICES + 1)}, f"1 to {MAX_CHOICES}"),
        ({"choice": ["a", ""]}, "each choice"),
        ({"structural_tag": "[]"}, "must be a JSON object"),
        ({"json_object": "yes"}, "true or false"),
        ({"json_object": True, "starts_after": (1,) * (MAX_STARTS_AFTER + 1)}, f"at most {MAX_STARTS_AFTER}"),
        ({"json_object": True, "starts_after": ("a",)}, "token ids"),
    ],
)
def test_what_cannot_be_a_form_is_refused_with_field_and_limit(fields: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        StructuredOutputs(**fields)


def test_the_deepest_schema_that_is_taken_is_taken() -> None:
    StructuredOutputs(json=nested(MAX_DEPTH))


def test_a_schema_that_holds_itself_is_refused() -> None:
    schema: dict = {}
    schema["not"] = schema
    with pytest.raises(RequestError, match="levels"):
        StructuredOutputs(json=schema)


def test_sampling_takes_a_form_and_nothing_else() -> None:
    form = StructuredOutputs(json_object=True)
    assert SamplingParams(structured_outputs=form).structured_outputs is form
    with pytest.raises(RequestError, match="structured_outputs must be StructuredOutputs"):
        SamplingParams(structured_outputs={"json_object": True})  # type: ignore[arg-type]


def test_nothing_loads_the_maker_of_grammars_before_a_form_comes() -> None:
    modules = "headway.llm, headway.server.serve, headway.engine.process, headway.executor.transformers_executor"
    code = f"import sys, {modules}; print([name for name in sys.modules if name.startswith('xgrammar')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "[]"
