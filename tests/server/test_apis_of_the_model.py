"""The Responses and Messages APIs with the embedded model: what they say is what the model says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.server.fakes import MODEL
from tests.server.running import Server

SUM, ANSWER = "12+30=", "42"
TOOL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}},
    "required": ["unit"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(Path(str(files("headway") / "default_model")), num_blocks=256, max_num_seqs=4) as server:
        yield server
        assert server.stop() == 0 and "Traceback" not in server.log(), server.log()


@pytest.fixture(scope="module")
def claude(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60)


def test_a_response_and_its_stream_say_what_the_model_says(server: Server) -> None:
    response = server.openai.responses.create(model=MODEL, input=SUM, temperature=0)
    assert (response.output_text, response.status) == (ANSWER, "completed")
    with server.openai.responses.stream(model=MODEL, input=SUM, temperature=0) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(pieces) == stream.get_final_response().output_text == ANSWER


def test_a_message_and_its_stream_say_what_the_model_says(claude: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": SUM}]}
    message = claude.messages.create(**asked)
    assert [block.text for block in message.content] == [ANSWER] and message.stop_reason == "end_turn"
    with claude.messages.stream(**asked) as stream:
        assert stream.get_final_text() == ANSWER
    counted = claude.messages.count_tokens(model=MODEL, messages=asked["messages"]).input_tokens
    assert counted == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


def test_a_call_that_is_asked_for_meets_its_schema(server: Server, claude: anthropic.Anthropic) -> None:
    function: dict[str, Any] = {"type": "function", "name": "weather", "parameters": TOOL_SCHEMA, "strict": True}
    once: dict[str, Any] = {"parallel_tool_calls": False, "max_output_tokens": 64}
    response = server.openai.responses.create(model=MODEL, input=SUM, tools=[function], tool_choice="required", **once)
    (call,) = response.output
    assert call.type == "function_call" and call.name == "weather" and json.loads(call.arguments)["unit"] in ("C", "F")
    message = claude.messages.create(
        model=MODEL,
        max_tokens=64,
        messages=[{"role": "user", "content": SUM}],
        tools=[{"name": "weather", "input_schema": TOOL_SCHEMA}],
        tool_choice={"type": "tool", "name": "weather"},
    )
    (use,) = message.content
    assert use.type == "tool_use" and use.name == "weather" and use.input["unit"] in ("C", "F")


def test_a_text_of_a_schema_is_parsed_by_the_client(server: Server) -> None:
    form: dict[str, Any] = {"type": "json_schema", "name": "unit", "schema": TOOL_SCHEMA, "strict": True}
    response = server.openai.responses.create(model=MODEL, input=SUM, text={"format": form})  # type: ignore[typeddict-item]
    assert json.loads(response.output_text)["unit"] in ("C", "F")
