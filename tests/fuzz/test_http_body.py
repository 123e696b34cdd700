"""Random bodies: every answer is a documented status, and every error has OpenAI's form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.conftest import Api

GENERATE = ["/v1/completions", "/v1/chat/completions"]
PATHS = [*GENERATE, *(f"{path}/render" for path in GENERATE), "/tokenize", "/detokenize"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "x"]), "content": VALUES}))
Ask = tuple[asyncio.Runner, Api, dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with asyncio.Runner() as runner:

        async def make() -> Api:
            return Api()

        api = runner.run(make())
        yield runner, api, runner.run(api.get("/openapi.json")).json()
        runner.run(api.http.aclose())
        runner.run(api.client.shutdown())


def fields(document: dict[str, Any]) -> list[str]:
    """The names of all fields that some body has."""
    return sorted({name for schema in document["components"]["schemas"].values() for name in schema["properties"]})


@given(data=st.data())
def test_every_body_has_a_documented_answer_in_the_form_of_all_answers(ask: Ask, data: st.DataObject) -> None:
    runner, api, document = ask
    path = data.draw(st.sampled_from(PATHS), label="path")
    body: Any = data.draw(st.dictionaries(st.sampled_from(fields(document)), VALUES, max_size=4), label="fields")
    body |= data.draw(st.sampled_from([{}, {"prompt": "a"}, {"prompt": [[1], [2]]}, {"tokens": [1]}]), label="base")
    if data.draw(st.booleans(), label="chat"):
        body["messages"] = data.draw(MESSAGES, label="messages")
    content = json.dumps(body)
    check(runner, api, document, path, content.encode())


@given(content=st.binary(max_size=60), path=st.sampled_from(PATHS))
def test_bytes_that_are_no_body_are_refused(ask: Ask, content: bytes, path: str) -> None:
    check(*ask, path, content)


def check(runner: asyncio.Runner, api: Api, document: dict[str, Any], path: str, content: bytes) -> None:
    response = runner.run(api.post(path, content=content, headers={"Content-Type": "application/json"}))
    assert response.status_code < 500, response.text
    assert str(response.status_code) in document["paths"][path]["post"]["responses"], response.text
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
