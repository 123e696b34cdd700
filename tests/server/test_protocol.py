"""What clients may send, and what they are told when it is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from headway.error_text import describe
from headway.errors import RequestError
from headway.server.fields.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    TokenizeBody,
    TokenizeChatRequest,
    TokenizeRequest,
)

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "index": 0, "function": {"name": "f", "arguments": '{"a": [1]}'}}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "7"}
USER = [{"role": "user", "content": "hi"}]


def completion(**body: Any) -> CompletionRequest:
    return CompletionRequest.model_validate_json(json.dumps({"prompt": "a", **body}))


def chat(**body: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate_json(json.dumps({"messages": USER, **body}))


def complaint(model: type[CompletionRequest | ChatCompletionRequest], body: Any) -> tuple[str, str | None]:
    raw = body if isinstance(body, (str, bytes)) else json.dumps(body)
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(raw)
    return describe(caught.value)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_comes_in_four_forms(given: Any, prompts: list[Any]) -> None:
    assert completion(prompt=given).prompt == prompts


@pytest.mark.parametrize("given", [3, None, {"text": "a"}, [], ["a", 1], [1, "a"], [True], [1.5], [["a"]]])
def test_any_other_prompt_is_refused(given: Any) -> None:
    message, field = complaint(CompletionRequest, {"prompt": given})
    assert message.startswith("prompt") and field == "prompt"


@pytest.mark.parametrize(
    ("body", "message", "field"),
    [
        ({"prompt": "a", "foo": 1}, "unknown field 'foo'", "foo"),
        ({}, "the field 'prompt' is required", "prompt"),
        ({"prompt": "a", "temperature": "1"}, "temperature: Input should be a valid number, got '1'", "temperature"),
        ({"prompt": "a", "n": True}, "n: Input should be a valid integer, got True", "n"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens: Input should be a valid integer, got 1.5", "max_tokens"),
        ({"prompt": "a", "stop": ["x", 3]}, "stop[1]: Input should be a valid string, got 3", "stop[1]"),
        ({"prompt": "a", "suffix": "z"}, "suffix is not supported: leave it out", "suffix"),
        ("[]", "the body must be a JSON object", None),
        ("3", "the body must be a JSON object", None),
    ],
)
def test_complaints_name_the_field_and_the_value(body: Any, message: str, field: str | None) -> None:
    assert complaint(CompletionRequest, body) == (message, field)


@pytest.mark.parametrize("name", ["top_k", "min_tokens", "max_tokens", "priority"])
def test_whole_numbers_that_fit_no_register_are_refused(name: str) -> None:
    message, field = complaint(CompletionRequest, {"prompt": "a", name: 10**12})
    assert field == name and str(10**12) in message and str(2**31 - 1) in message


@pytest.mark.parametrize("body", [b'{"prompt": "\xff"}', '{"prompt": "\\ud800"}', "{", "", "[" * 10_000])
def test_what_is_not_json_in_utf8_is_refused(body: str | bytes) -> None:
    message, _ = complaint(CompletionRequest, body)
    assert message.startswith("the body is not valid JSON in UTF-8")


def test_values_out_of_range_are_refused_when_sampling_is_made() -> None:
    with pytest.raises(RequestError, match=r"temperature must be in \[0, 100\], got -1"):
        completion(temperature=-1).sampling({})


def test_not_a_number_is_no_temperature() -> None:
    body = CompletionRequest.model_validate_json('{"prompt": "a", "temperature": NaN}')
    with pytest.raises(RequestError, match="nan"):
        body.sampling({})


def test_logit_bias_keys_are_token_ids() -> None:
    assert completion(logit_bias={"5": 1}).sampling({}).logit_bias == {5: 1.0}
    for key in ("x", "-1", "1.5", "9" * 20):
        with pytest.raises(RequestError, match="logit_bias takes token ids"):
            completion(logit_bias={key: 1}).sampling({})


def test_best_of_must_equal_n() -> None:
    assert completion(n=2, best_of=2).n == 2
    assert complaint(CompletionRequest, {"prompt": "a", "best_of": 2})[0].startswith("best_of (2) must equal n (1)")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": 2}, None),
        ({"echo": True}, None),
        ({"echo": True, "logprobs": 0}, 0),
        ({"echo": True, "logprobs": 2, "prompt_logprobs": 1}, 2),
        ({"echo": True, "prompt_logprobs": 1}, 1),
        ({"logprobs": 2, "prompt_logprobs": 0}, 0),
    ],
)
def test_the_engine_is_asked_for_what_echo_and_prompt_logprobs_show(
    fields: dict[str, Any], expected: int | None
) -> None:
    body = CompletionRequest.model_validate({"prompt": "a", **fields})
    assert body.sampling({}).prompt_logprobs == expected


def test_stream_options_need_a_stream() -> None:
    message, _ = complaint(CompletionRequest, {"prompt": "a", "stream_options": {"include_usage": True}})
    assert message == "stream_options is only allowed when stream is true"
    assert completion(stream=True, stream_options={"include_usage": True}).include_usage


def test_the_models_defaults_yield_to_what_the_client_says() -> None:
    defaults = {"temperature": 0.3, "top_k": 5}
    sampling = completion(temperature=0.9).sampling(defaults)
    assert (sampling.temperature, sampling.top_k) == (0.9, 5)


def test_null_means_the_default() -> None:
    sampling = completion(temperature=None, stop=None, n=None, logit_bias=None).sampling({})
    assert (sampling.temperature, sampling.stop, sampling.n) == (1.0, (), 1)


def test_completions_are_short_and_chats_long_unless_said_otherwise() -> None:
    assert completion().sampling({}).max_tokens == 16
    assert completion(max_tokens=None).sampling({}).max_tokens is None
    assert chat().sampling({}).max_tokens is None


def test_bookkeeping_fields_of_sdks_are_taken() -> None:
    chat(user="u", metadata={"a": "b"}, store=False, service_tier="auto", safety_identifier="s")
    completion(user="u")


def test_max_completion_tokens_is_max_tokens() -> None:
    assert chat(max_completion_tokens=5).sampling({}).max_tokens == 5
    message, _ = complaint(ChatCompletionRequest, {"messages": USER, "max_tokens": 1, "max_completion_tokens": 2})
    assert "differ" in message


@pytest.mark.parametrize(
    "unsupported",
    [
        {"functions": [{}]},
        {"modalities": ["audio"]},
        {"function_call": {"name": "f"}},
    ],
)
def test_what_this_server_does_not_do_is_refused_by_name(unsupported: dict[str, Any]) -> None:
    message, _ = complaint(ChatCompletionRequest, {"messages": USER, **unsupported})
    assert message == f"{next(iter(unsupported))} is not supported: leave it out"


def test_asking_for_nothing_unsupported_is_fine() -> None:
    chat(tools=[], tool_choice="none", response_format={"type": "text"}, modalities=["text"], functions=None)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty: a conversation needs at least one message"),
        ([{"role": "robot", "content": "a"}], "messages[0].role: Input should be"),
        ([{"role": "user"}], "a message of role 'user' needs content"),
        ([{"role": "user", "content": 3}], "messages[0].content: Input should be a valid string, got 3"),
        ([{"role": "user", "content": "a", "x": 1}], "unknown field 'messages[0].x'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "content parts of type 'image_url'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "a content part of type 'text' needs"),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}], "unknown field 'x'"),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{}]}],
            "the field 'messages[0].tool_calls[0].function' is required",
        ),
        ([{"role": "user", "content": "a", "tool_calls": [CALL]}], "a message of role 'user' has no tool_calls"),
        ([{"role": "tool"}], "a message of role 'tool' needs content"),
    ],
)
def test_messages_that_cannot_be_read_are_refused(messages: Any, message: str) -> None:
    assert complaint(ChatCompletionRequest, {"messages": messages})[0].startswith(message)


def test_content_parts_are_lines_of_one_string() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (message,) = chat(messages=[{"role": "user", "content": parts, "name": "me"}]).messages
    assert message.for_template() == {"role": "user", "content": "a\nb", "name": "me"}


def test_tools_and_their_calls_are_read() -> None:
    body = chat(tools=[TOOL], messages=[*USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT])
    assert [message.for_template() for message in body.messages[1:]] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}],
        },
        {"role": "tool", "content": "7", "tool_call_id": "1"},
    ]
    assert body.variables()["tools"] == [TOOL]


@pytest.mark.parametrize("written", ["", "{", "[1]", "nonsense", "[" * 100_000, '{"a": "\\ud800"}'])
def test_arguments_that_a_model_wrote_wrongly_do_not_end_the_conversation(written: str) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": written}}
    (message,) = chat(messages=[{"role": "assistant", "tool_calls": [call]}]).messages
    assert message.for_template()["tool_calls"][0]["function"]["arguments"] == (written or {})


@pytest.mark.parametrize(
    ("given", "use"),
    [
        ({}, "none"),
        ({"tools": []}, "none"),
        ({"tool_choice": "auto"}, "none"),
        ({"tool_choice": "none"}, "none"),
        ({"tools": [], "tool_choice": "auto"}, "none"),
        ({"tools": [TOOL], "tool_choice": "none"}, "none"),
        ({"tools": [TOOL]}, "auto"),
        ({"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False}, "auto"),
        ({"tools": [TOOL], "tool_choice": "required"}, "required"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "named"),
    ],
)
def test_use_of_tools(given: dict[str, Any], use: str) -> None:
    assert chat(**given).use_of_tools == use


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice asks for a call, and there are no tools"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice asks for a call, and there are no tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice names 'g', which is none of the tools (f)",
        ),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "the field 'tools[0].function' is required"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}, "tools[0].function.parameters"),
        ({"tools": [TOOL] * 1025}, "at most 1024 tools are taken, got 1025"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ],
)
def test_tools_that_cannot_be_used_are_refused(given: dict[str, Any], message: str) -> None:
    said, param = complaint(ChatCompletionRequest, {"messages": USER, **given})
    assert message in f"{param}: {said}"


def test_an_answer_may_be_sent_back_as_it_came() -> None:
    message = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "annotations": []}
    message |= {"reasoning": "r", "reasoning_content": "r", "cache_control": {"type": "ephemeral"}}
    assert chat(messages=[*USER, message, *USER]).messages[1].content == "x"


def test_top_logprobs_need_logprobs() -> None:
    assert chat(logprobs=True, top_logprobs=3).sampling({}).logprobs == 3
    assert chat(logprobs=True).sampling({}).logprobs == 0
    assert chat(logprobs=False).sampling({}).logprobs is None
    for body, message in (({"top_logprobs": 3}, "needs logprobs"), ({"logprobs": True, "top_logprobs": 99}, "99")):
        assert message in complaint(ChatCompletionRequest, {"messages": USER, **body})[0]


def test_tokenize_takes_a_text_or_a_conversation() -> None:
    body: TypeAdapter[TokenizeRequest | TokenizeChatRequest] = TypeAdapter(TokenizeBody)
    assert isinstance(body.validate_json('{"prompt": "a"}'), TokenizeRequest)
    assert isinstance(body.validate_json(json.dumps({"messages": USER})), TokenizeChatRequest)
    with pytest.raises(ValidationError) as caught:
        body.validate_json('{"prompt": "a", "foo": 1}')
    assert describe(caught.value) == ("unknown field 'foo'", "foo")
