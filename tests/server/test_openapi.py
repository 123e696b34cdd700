"""The documentation at /openapi.json says of each body what the server says: it is valid, or it is refused.

Rules that no schema can say are in `tests/fuzz/valid_bodies.py`.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from headway.sampling import LIMITS
from tests.fuzz.valid_bodies import cannot_be_described
from tests.server.conftest import Api

COMPLETIONS, CHAT, TOKENIZE, DETOKENIZE = "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
USER = {"role": "user", "content": "hi"}
USED: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "a"},
    CHAT: {"messages": [USER]},
    TOKENIZE: {"prompt": "a"},
    DETOKENIZE: {"tokens": [97]},
    f"{COMPLETIONS}/render": {"prompt": "a"},
    f"{CHAT}/render": {"messages": [USER]},
    RESPONSES: {"input": "hi"},
    MESSAGES: {"messages": [USER], "max_tokens": 5},
    f"{MESSAGES}/count_tokens": {"messages": [USER]},
}


_validators: dict[str, jsonschema_rs.Validator] = {}  # by path; the document is the same for all tests


async def is_documented(api: Api, path: str, body: Any) -> bool:
    if not _validators:
        document = (await api.get("/openapi.json")).json()
        for known in USED:
            content = document["paths"][known]["post"]["requestBody"]["content"]["application/json"]
            schema = content["schema"] | {"components": document["components"]}
            _validators[known] = jsonschema_rs.validator_for(schema)
    return _validators[path].is_valid(body)


async def refusal(api: Api, path: str, body: Any) -> str | None:
    """The message of a refusal; None if the body is taken."""
    response = await api.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
    return None if response.status_code == 200 else str(response.json()["error"]["message"])


async def is_taken(api: Api, path: str, body: Any) -> bool:
    """Whether a body is taken, or is refused for a reason that no schema can say."""
    message = await refusal(api, path, body)
    return message is None or cannot_be_described(message)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize("name", sorted(LIMITS.keys() - {"logit_bias"}))
async def test_the_documented_range_of_a_number_is_the_range_that_is_taken(api: Api, name: str) -> None:
    low, most = LIMITS[name]
    high = 2**31 - 1 if most is None else most
    for value, valid in ((low, True), (high, True), (None, True), (low - 1, False), (high + 1, False)):
        body = USED[COMPLETIONS] | {name: value}
        assert (await is_documented(api, COMPLETIONS, body), await is_taken(api, COMPLETIONS, body)) == (valid, valid)


@pytest.mark.parametrize(
    ("path", "given"),
    [
        (COMPLETIONS, {"prompt": [[1], [2]], "logit_bias": {"97": -100, "98": 100}, "stop": ["a"] * 16}),
        (COMPLETIONS, {"echo": True, "logprobs": 20, "max_tokens": 0}),
        (
            COMPLETIONS,
            {
                "echo": True,
                "prompt_logprobs": 20,
                "logprobs": None,
                "stop": "x",
                "stop_token_ids": [1] * 64,
                "top_p": 1,
            },
        ),
        (COMPLETIONS, {"stream": True, "stream_options": {"include_usage": True}, "model": "tiny", "suffix": None}),
        (CHAT, {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]}),
        (CHAT, {"logprobs": True, "top_logprobs": 3, "max_tokens": 5, "max_completion_tokens": None}),
        (CHAT, {"continue_final_message": True, "add_generation_prompt": False}),
        (CHAT, {"response_format": {"type": "json_object", "strict": True}}),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": True}}},
        ),
        (COMPLETIONS, {"structured_outputs": {"json": {}, "regex": None, "json_object": False, "backend": "x"}}),
        (COMPLETIONS, {"structured_outputs": {}, "guided_json": '{"type": "object"}'}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant"}]}),
        (COMPLETIONS, {"no_such_field": None}),
        (TOKENIZE, {"return_token_strs": True}),
        (DETOKENIZE, {"tokens": []}),
        (f"{COMPLETIONS}/render", {"prompt": [[1], [2]], "stop": ["a"] * 16}),
        (f"{CHAT}/render", {"logprobs": True, "top_logprobs": 3}),
        (RESPONSES, {"input": [USER, {"type": "message", "role": "assistant", "content": "a", "id": "x"}]}),
        (RESPONSES, {"input": [USER, {"type": "function_call_output", "call_id": "c", "output": "2", "id": "x"}]}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "x": 1}]}]}),
        (RESPONSES, {"tools": [{"type": "function", "name": "a", "parameters": {}}], "tool_choice": "required"}),
        (RESPONSES, {"previous_response_id": None, "background": False, "truncation": "disabled", "include": []}),
        (RESPONSES, {"text": {"format": {"type": "text"}}, "reasoning": {}, "max_output_tokens": 3, "x": 1}),
        (MESSAGES, {"system": [{"type": "text", "text": "a", "cache_control": {}}], "stop_sequences": ["a"]}),
        (MESSAGES, {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}),
        (MESSAGES, {"tools": [{"name": "a", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "a"}}),
        (MESSAGES, {"thinking": {"type": "disabled"}, "metadata": {"user_id": None}, "mcp_servers": [], "x": 1}),
        (f"{MESSAGES}/count_tokens", {"tools": [{"type": "custom", "name": "a", "input_schema": {}}]}),
    ],
)
async def test_what_is_documented_is_taken(api: Api, path: str, given: dict[str, Any]) -> None:
    body = USED[path] | given
    assert await is_documented(api, path, body) and await is_taken(api, path, body)


@pytest.mark.parametrize(
    ("path", "given"),
    [
        *((COMPLETIONS, {"prompt": prompt}) for prompt in ([], [-1], [1.5], {}, None, [1, "a"])),
        *((COMPLETIONS, {"stop": stop}) for stop in ("", [""], ["a"] * 17)),
        (COMPLETIONS, {"stop_token_ids": [1] * 65}),
        *((COMPLETIONS, {"logit_bias": bias}) for bias in ({"x": 1}, {"97": 101}, {"-1": 1})),
        *((COMPLETIONS, {"top_p": top_p}) for top_p in (0, 1.1)),
        (COMPLETIONS, {"model": "other"}),
        (COMPLETIONS, {"suffix": "z"}),
        (COMPLETIONS, {"prompt_logprobs": 21}),
        (COMPLETIONS, {"stream_options": {"include_usage": True}}),
        (CHAT, {"stream": False, "stream_options": {}}),
        (CHAT, {"tools": [{"type": "function"}]}),
        (CHAT, {"tool_choice": "required"}),
        (CHAT, {"response_format": {"type": "yaml"}}),
        (COMPLETIONS, {"structured_outputs": {"choice": []}}),
        (COMPLETIONS, {"structured_outputs": {"json": {}, "whitespace_pattern": " "}}),
        (COMPLETIONS, {"guided_regex": ""}),
        (COMPLETIONS, {"guided_choice": ["a", ""]}),
        (CHAT, {"top_logprobs": 3}),
        (CHAT, {"logprobs": True, "top_logprobs": 21}),
        (CHAT, {"max_tokens": 1, "max_completion_tokens": 2}),
        (CHAT, {"continue_final_message": True}),
        (CHAT, {"messages": []}),
        (CHAT, {"messages": [{"role": "user"}]}),
        (CHAT, {"messages": [{"role": "robot", "content": "a"}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
        (CHAT, {"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"type": "function"}]}]}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": ""}}]}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}] * 1025}),
        (CHAT, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        (CHAT, {"reasoning_effort": "huge"}),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{}]}]}),
        (TOKENIZE, {"prompt": 3}),
        (DETOKENIZE, {"tokens": [-1]}),
        (f"{COMPLETIONS}/render", {"stop": ["a"] * 17}),
        (f"{CHAT}/render", {"top_logprobs": 3}),
        *((RESPONSES, {"input": given}) for given in ([], None, [{}], [{"type": "item_reference", "id": "x"}])),
        (RESPONSES, {"input": [{"role": "robot", "content": "a"}]}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text"}]}]}),
        (RESPONSES, {"tools": [{"type": "web_search"}]}),
        *((RESPONSES, {"tool_choice": choice}) for choice in ("x", {"type": "mcp"}, {"type": "function"})),
        *((RESPONSES, {name: "x"}) for name in ("previous_response_id", "conversation", "prompt", "truncation")),
        *((RESPONSES, given) for given in ({"background": True}, {"max_output_tokens": 0}, {"top_p": 0})),
        *((MESSAGES, {"messages": given}) for given in ([], [{"role": "robot", "content": "a"}], [{"role": "user"}])),
        (RESPONSES, {"reasoning": {"effort": ""}}),
        (MESSAGES, {"output_config": {"effort": ""}}),
        (f"{MESSAGES}/count_tokens", {"output_config": {"effort": ""}}),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}),
        (MESSAGES, {"tools": [{"name": "a"}]}),
        (MESSAGES, {"tools": [{"type": "bash_20250124", "name": "bash", "input_schema": {}}]}),
        *((MESSAGES, {"tool_choice": choice}) for choice in ("auto", {"type": "tool"}, {"type": "x"})),
        *((MESSAGES, given) for given in ({"max_tokens": 0}, {"stop_sequences": [""]}, {"container": "x"})),
        (f"{MESSAGES}/count_tokens", {"system": 3}),
    ],
)
async def test_what_is_refused_is_not_documented(api: Api, path: str, given: dict[str, Any]) -> None:
    body = USED[path] | given
    assert not await is_documented(api, path, body) and await refusal(api, path, body) is not None
