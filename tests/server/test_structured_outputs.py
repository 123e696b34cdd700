"""Answers in a given form over HTTP, by the embedded model: an official client, two processes, a grammar process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import pytest

from headway.default_model import PATH
from tests.server.fakes import MODEL
from tests.server.running import Server

SCHEMA = {
    "type": "object",
    "properties": {
        "sum": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"type": "string", "maxLength": 5},
        "kind": {"enum": ["sum", "copy"]},
    },
    "required": ["sum", "name", "kind"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
USER = [{"role": "user", "content": "12+34="}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(PATH, device="cpu", dtype="float32", num_blocks=256, max_num_seqs=8) as server:
        yield server
        assert server.stop() == 0, server.log()
        assert server.leftovers() == []
        assert "Traceback" not in server.log()


def test_a_chat_answer_keeps_to_its_schema_whole_and_as_a_stream(server: Server) -> None:
    fields: Any = {"messages": USER, "response_format": JSON_SCHEMA, "max_tokens": 300, "temperature": 0}
    whole = server.openai.chat.completions.create(model=MODEL, **fields)
    text = whole.choices[0].message.content
    assert text is not None and jsonschema_rs.is_valid(SCHEMA, json.loads(text))
    assert whole.choices[0].finish_reason == "stop"
    stream = server.openai.chat.completions.create(model=MODEL, stream=True, **fields)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text


def test_several_answers_with_logprobs_keep_to_it_each(server: Server) -> None:
    answer = server.openai.chat.completions.create(
        model=MODEL,
        messages=USER,  # type: ignore[arg-type]
        n=3,
        logprobs=True,
        top_logprobs=2,
        max_tokens=20,
        extra_body={"structured_outputs": {"choice": ["yes", "no", "perhaps"]}},
    )
    for choice in answer.choices:
        assert choice.message.content in ("yes", "no", "perhaps")
        assert choice.logprobs is not None and choice.logprobs.content is not None
        written = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content)
        assert written.decode() == choice.message.content


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"guided_regex": "[0-9]{2}-[a-z]"}, lambda text: text[2] == "-" and len(text) == 4),
        ({"guided_choice": ["a b", "c"]}, lambda text: text in ("a b", "c")),
        ({"guided_grammar": 'root ::= "<" [0-9] ">"'}, lambda text: text[0] == "<" and text[-1] == ">"),
        ({"guided_json": {"const": [1]}}, lambda text: json.loads(text) == [1]),
    ],
)
def test_a_completion_takes_the_older_fields(server: Server, fields: dict[str, Any], allowed: Any) -> None:
    answer = server.openai.completions.create(
        model=MODEL, prompt=["1+1=", "2+2="], max_tokens=60, extra_body=fields, seed=1
    )
    assert all(allowed(choice.text) for choice in answer.choices), answer.choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_cannot_be_compiled_is_a_400_with_the_place(server: Server, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="line 1, column 12") as refusal:
        server.openai.completions.create(
            model=MODEL, prompt=["a", "b"], n=2, stream=stream, extra_body={"guided_grammar": 'root ::= "a'}
        )
    assert refusal.value.type == "invalid_request_error"
    assert server.openai.completions.create(model=MODEL, prompt="1+1=").choices[0].text
