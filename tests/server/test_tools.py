"""/v1/chat/completions with tools and reasoning: what the client gets, and what the engine is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from headway.client.answer_parser import AnswerParser
from headway.client.tool_parsers import tool_parser
from headway.outputs import RequestDelta, RequestMetrics
from headway.request import FinishReason
from headway.sampling import SamplingParams
from headway.server.answers.chat import ChatFace
from headway.server.answers.generate import Prompt
from headway.server.fields.protocol import ChatCompletionRequest
from headway.server.routes.api import create_app
from headway.wire.to_engine import AddGroup
from tests.server.conftest import Api
from tests.server.fakes import MODEL, fake_client
from tests.tiny_tokenizer import byte_ids, byte_tokenizer

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "w"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
SEARCH = {"type": "function", "function": {"name": "search"}}
NAMED = {"type": "function", "function": {"name": "weather"}}
ARGUMENTS = '{"city": "Ulm"}'
CALL = '<tool_call>{"name": "weather", "arguments": ' + ARGUMENTS + "}</tool_call>"
TEMPLATE = "{# <tool_call> enable_thinking #}{{ tools | length if tools }}{{ messages[-1].content }}"

MakeApi = Callable[..., Api]


def tokenizer(*special: str) -> PreTrainedTokenizerFast:
    made = byte_tokenizer(TEMPLATE)
    made.add_tokens([AddedToken(token, special=True) for token in special], special_tokens=True)
    return made


def api_that_says(make_api: MakeApi, text: str, *special: str, **options: Any) -> Api:
    """Every request is answered with this text, of one token a step. special: parts of it that are special tokens."""
    made = tokenizer(*special)
    ids: list[int] = []
    while text:
        token = next((token for token in special if text.startswith(token)), None)
        ids += byte_ids(made, text[0]) if token is None else [made.convert_tokens_to_ids(token)]
        text = text[len(token or text[0]) :]
    return make_api(tokenizer=made, answer=ids, **options)


async def asked(api: Api, **body: Any) -> dict[str, Any]:
    response = await api.post(CHAT, json={"messages": USER, **body})
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice


async def streamed(api: Api, **body: Any) -> list[dict[str, Any]]:
    """The deltas of the only choice, and its finish_reason as a last one."""
    response = await api.post(CHAT, json={"messages": USER, "stream": True, **body})
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    return [*(choice["delta"] for choice in choices if choice["delta"]), {"end": choices[-1]["finish_reason"]}]


def sampling_of(api: Api) -> SamplingParams:
    (group,) = api.link.sent_of(AddGroup)
    return group.requests[0].sampling


# -- answers


async def test_call_is_a_message_without_content(make_api: MakeApi) -> None:
    choice = await asked(api_that_says(make_api, CALL + "."), tools=[WEATHER], stop=".")
    (call,) = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None}
    assert choice["finish_reason"] == "tool_calls"
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}


async def test_stream_of_a_call_has_its_name_first_and_its_arguments_in_pieces(make_api: MakeApi) -> None:
    deltas = await streamed(api_that_says(make_api, "So: " + CALL + "."), tools=[WEATHER], stop=".")
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "So:"
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    assert parts[0].pop("id").startswith("call_")
    assert parts[0].keys() == {"index", "type", "function"}
    assert (parts[0]["index"], parts[0]["type"], parts[0]["function"]["name"]) == (0, "function", "weather")
    assert "".join(part["function"]["arguments"] for part in parts) == ARGUMENTS
    assert len(parts) > 3
    assert all(part.keys() == {"index", "function"} for part in parts[1:])
    assert deltas[-1] == {"end": "tool_calls"}


def test_chunk_has_a_part_of_one_call_at_most_and_begins_its_arguments_with_its_name() -> None:
    """Clients look at the first part of a chunk alone."""
    face = ChatFace(
        top_logprobs=0,
        new_parser=lambda: AnswerParser(tools=tool_parser("hermes")(["weather"])),
        response_id="a",
        created=0,
        model=MODEL,
        prompts=[Prompt([1])],
        n=1,
    )
    text = "So: " + CALL + CALL
    told = RequestDelta("a", 0, text, [1], None, FinishReason.STOP, None, None, 1, 0, True, RequestMetrics())
    choices = [msgspec.to_builtins(chunk.choices[0]) for chunk in face.chunks(0, told)]
    calls = [choice["delta"]["tool_calls"] for choice in choices]
    assert [[part["index"] for part in parts] for parts in calls] == [[0], [1]]
    assert [parts[0]["function"] for parts in calls] == [{"name": "weather", "arguments": ARGUMENTS}] * 2
    assert [choice["delta"].get("content") for choice in choices] == ["So:", None]
    assert [choice["finish_reason"] for choice in choices] == [None, "tool_calls"]


async def test_stream_of_two_calls_tells_them_apart(make_api: MakeApi) -> None:
    deltas = await streamed(api_that_says(make_api, CALL + CALL), tools=[WEATHER])
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    for index in (0, 1):
        own = [part for part in parts if part["index"] == index]
        assert "".join(part["function"]["arguments"] for part in own) == ARGUMENTS
    assert deltas[-1] == {"end": "length"}  # the answer was cut off, whatever it has called


async def test_several_answers_are_read_each_by_itself(make_api: MakeApi) -> None:
    response = await api_that_says(make_api, CALL).post(CHAT, json={"messages": USER, "tools": [WEATHER], "n": 2})
    first, second = (choice["message"]["tool_calls"] for choice in response.json()["choices"])
    assert first[0]["function"] == second[0]["function"] and first[0]["id"] != second[0]["id"]


async def test_without_parallel_calls_there_is_one(make_api: MakeApi) -> None:
    choice = await asked(api_that_says(make_api, CALL + CALL), tools=[WEATHER], parallel_tool_calls=False)
    assert len(choice["message"]["tool_calls"]) == 1


async def test_malformed_call_is_text(make_api: MakeApi) -> None:
    text = CALL.replace("}}", "}]")
    choice = await asked(api_that_says(make_api, text + "."), tools=[WEATHER], stop=".")
    assert choice["message"]["content"] == text
    assert "tool_calls" not in choice["message"] and choice["finish_reason"] == "stop"


@pytest.mark.parametrize("given", [{}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}])
async def test_text_without_wanted_tools_runs_no_parser(
    make_api: MakeApi, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a parser was made")

    monkeypatch.setattr(tool_parser("hermes"), "__init__", never)
    api = api_that_says(make_api, CALL, tool_call_parser="hermes")
    assert (await asked(api, **given))["message"]["content"] == CALL


async def test_logprobs_have_every_token_of_a_call(make_api: MakeApi) -> None:
    choice = await asked(api_that_says(make_api, CALL), tools=[WEATHER], logprobs=True)
    assert "".join(token["token"] for token in choice["logprobs"]["content"]) == CALL
    deltas = await api_that_says(make_api, CALL).post(
        CHAT, json={"messages": USER, "tools": [WEATHER], "logprobs": True, "stream": True}
    )
    chunks = [json.loads(line[6:]) for line in deltas.text.splitlines() if line and line != "data: [DONE]"]
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert "".join(token["token"] for each in logprobs if each for token in each["content"]) == CALL


# -- special tokens


MISTRAL = "[TOOL_CALLS]"


@pytest.mark.parametrize("stream", [False, True])
async def test_special_token_that_begins_calls_is_seen_by_the_parser_alone(make_api: MakeApi, stream: bool) -> None:
    text = f'<s>Well{MISTRAL}[{{"name": "weather", "arguments": {ARGUMENTS}}}]'
    api = api_that_says(make_api, text, MISTRAL, "<s>", tool_call_parser="mistral")
    if stream:
        deltas = await streamed(api, tools=[WEATHER])
        assert "".join(delta.get("content", "") for delta in deltas) == "Well"
        parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
        assert "".join(part["function"]["arguments"] for part in parts) == ARGUMENTS
    else:
        message = (await asked(api, tools=[WEATHER]))["message"]
        assert message["content"] == "Well"
        assert message["tool_calls"][0]["function"]["arguments"] == ARGUMENTS
        assert len(message["tool_calls"][0]["id"]) == 9


async def test_special_token_of_a_malformed_call_is_not_shown(make_api: MakeApi) -> None:
    api = api_that_says(make_api, f"a{MISTRAL}b c", MISTRAL, tool_call_parser="mistral")
    assert (await asked(api, tools=[WEATHER]))["message"]["content"] == "ab c"
    api = api_that_says(make_api, f"a{MISTRAL}b c", MISTRAL, tool_call_parser="mistral")
    shown = await asked(api, tools=[WEATHER], skip_special_tokens=False)
    assert shown["message"]["content"] == f"a{MISTRAL}b c"


async def test_special_tokens_stay_hidden_from_requests_without_tools(make_api: MakeApi) -> None:
    api = api_that_says(make_api, f"a{MISTRAL}b", MISTRAL, tool_call_parser="mistral")
    assert (await asked(api))["message"]["content"] == "ab"


# -- which parser


async def test_model_whose_calls_cannot_be_read_is_not_asked_for_any(make_api: MakeApi) -> None:
    api = make_api(chat_template="{{ messages[-1].content }}")
    response = await api.post(CHAT, json={"messages": USER, "tools": [WEATHER]})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "tool_choice")
    assert "--tool-call-parser (deepseek_v3, " in error["message"]
    assert not api.link.sent_of(AddGroup)
    for fine in ("none", "required", NAMED):
        response = await api.post(CHAT, json={"messages": USER, "tools": [WEATHER], "tool_choice": fine})
        assert response.status_code == 200


async def test_flags_of_parsers_are_checked_at_the_start() -> None:
    client, _ = fake_client()
    with pytest.raises(ValueError, match="there is no tool parser 'x'"):
        create_app(client, MODEL, tool_call_parser="x")
    with pytest.raises(ValueError, match="there is no reasoning parser 'x'"):
        create_app(client, MODEL, reasoning_parser="x")
    with pytest.raises(ValueError, match="--enable-auto-tool-choice needs --tool-call-parser"):
        create_app(client, MODEL, enable_auto_tool_choice=True)
    create_app(client, MODEL, enable_auto_tool_choice=True, tool_call_parser="hermes")
    create_app(client, MODEL, enable_auto_tool_choice=True, chat_template="{# <tool_call> #}")
    await client.shutdown()


# -- forced calls


async def test_required_call_is_forced_by_a_grammar(make_api: MakeApi) -> None:
    text = f'[{{"name": "weather", "parameters": {ARGUMENTS}}}]'
    api = api_that_says(make_api, text + ".")
    choice = await asked(api, tools=[WEATHER, SEARCH], tool_choice="required", stop=".")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ARGUMENTS}
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    form = sampling_of(api).structured_outputs
    assert form is not None and isinstance(form.json, str)
    schema = json.loads(form.json)
    first, second = schema["items"]["anyOf"]
    assert first["properties"] == {
        "name": {"type": "string", "enum": ["weather"]},
        "parameters": {"$ref": "#/$defs/0"},
    }
    assert schema["$defs"]["0"] == SCHEMA
    assert second["properties"]["name"]["enum"] == ["search"]


async def test_named_call_has_the_arguments_of_its_tool(make_api: MakeApi) -> None:
    api = api_that_says(make_api, ARGUMENTS + ".")
    choice = await asked(api, tools=[SEARCH, WEATHER], tool_choice=NAMED, stop=".")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ARGUMENTS}
    assert choice["finish_reason"] == "stop"  # as OpenAI's API says where the client has named the tool
    form = sampling_of(api).structured_outputs
    assert form is not None and isinstance(form.json, str) and json.loads(form.json) == SCHEMA


async def test_strict_tool_is_forced_only_where_the_model_calls_it(make_api: MakeApi) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    api = api_that_says(make_api, CALL)
    assert (await asked(api, tools=[strict, SEARCH]))["message"]["tool_calls"]
    form = sampling_of(api).structured_outputs
    assert form is not None and form.structural_tag is not None
    tags = json.loads(form.structural_tag)["format"]
    assert tags["triggers"] == ["<tool_call>"]
    assert [tag["content"]["json_schema"] for tag in tags["tags"]] == [SCHEMA, {"type": "object"}]


async def test_form_of_the_answer_leaves_room_for_calls(make_api: MakeApi) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "title": "answer"}}}
    api = api_that_says(make_api, CALL)
    assert (await asked(api, tools=[WEATHER], response_format=form))["message"]["tool_calls"]
    asked_for = sampling_of(api).structured_outputs
    assert asked_for is not None and asked_for.structural_tag is not None
    json_alone, calls = json.loads(asked_for.structural_tag)["format"]["elements"]
    assert json_alone["json_schema"]["title"] == "answer"
    assert calls["tags"][0]["content"]["json_schema"] == SCHEMA


async def test_form_of_the_answer_stays_where_no_call_may_be(make_api: MakeApi) -> None:
    api = api_that_says(make_api, "{}")
    await asked(api, tools=[WEATHER], tool_choice="none", response_format={"type": "json_object"})
    form = sampling_of(api).structured_outputs
    assert form is not None and form.json_object


async def test_tool_that_is_not_strict_is_forced_by_nothing(make_api: MakeApi) -> None:
    api = api_that_says(make_api, CALL)
    await asked(api, tools=[WEATHER])
    assert sampling_of(api).structured_outputs is None


# -- reasoning


THOUGHT = "<think>Hm.</think>Yes."


async def test_reasoning_is_parted_from_the_content(make_api: MakeApi) -> None:
    message = (await asked(api_that_says(make_api, THOUGHT, reasoning_parser="qwen3")))["message"]
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == ("Hm.", "Hm.", "Yes.")
    deltas = await streamed(api_that_says(make_api, THOUGHT, reasoning_parser="qwen3"))
    for field, text in (("reasoning", "Hm."), ("reasoning_content", "Hm."), ("content", "Yes.")):
        assert "".join(delta.get(field, "") for delta in deltas) == text


async def test_reasoning_stays_with_the_server_if_the_client_does_not_want_it(make_api: MakeApi) -> None:
    api = api_that_says(make_api, THOUGHT, reasoning_parser="qwen3")
    message = (await asked(api, include_reasoning=False))["message"]
    assert message == {"role": "assistant", "content": "Yes.", "refusal": None}


async def test_reasoning_tags_that_are_special_tokens_are_found(make_api: MakeApi) -> None:
    api = api_that_says(make_api, THOUGHT, "<think>", "</think>", reasoning_parser="deepseek_r1")
    message = (await asked(api))["message"]
    assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")


async def test_call_behind_the_reasoning_is_found(make_api: MakeApi) -> None:
    api = api_that_says(make_api, f"<think>{CALL}</think>\n{CALL}", reasoning_parser="qwen3")
    message = (await asked(api, tools=[WEATHER]))["message"]
    assert (message["reasoning"], message["content"], len(message["tool_calls"])) == (CALL, None, 1)


@pytest.mark.parametrize(
    ("content", "name", "waits"),
    [
        ("w", "qwen3", True),  # the template knows enable_thinking: the model thinks
        ("w<think>\n", "qwen3", True),
        ("w<think></think>", "qwen3", False),
        ("w", "deepseek_r1", True),
        ("w</think>\n\n", "deepseek_r1", False),
        ("w", None, False),
    ],
)
async def test_form_of_the_answer_begins_behind_the_reasoning(
    make_api: MakeApi, content: str, name: str | None, waits: bool
) -> None:
    api = api_that_says(make_api, "{}", "</think>", reasoning_parser=name)
    body = {"messages": [{"role": "user", "content": content}], "tools": [WEATHER], "tool_choice": NAMED}
    assert (await api.post(CHAT, json=body)).status_code == 200
    form = sampling_of(api).structured_outputs
    end = api.client.tokenizer.convert_tokens_to_ids("</think>")
    assert form is not None and form.starts_after == ((end,) if waits else ())


async def test_budget_of_thinking_knows_where_thinking_begins_and_ends(make_api: MakeApi) -> None:
    api = make_api(tokenizer=tokenizer("<think>", "</think>"), reasoning_parser="qwen3")
    body = ChatCompletionRequest.model_validate({"messages": USER})
    sampling = api.app.state.service.parsers.sampling(body, SamplingParams(thinking_token_budget=5), "")
    ids = api.client.tokenizer.convert_tokens_to_ids
    assert sampling.thinking is not None
    assert (sampling.thinking.start, sampling.thinking.end) == ((ids("<think>"),), (ids("</think>"),))


# -- other routes


async def test_tools_are_in_the_prompt_on_every_route(make_api: MakeApi) -> None:
    api = api_that_says(make_api, "{}")
    body = {"messages": USER, "tools": [WEATHER, SEARCH]}
    expected = api.client.tokenizer.encode("2w", add_special_tokens=False)
    assert (await api.post("/tokenize", json=body)).json()["tokens"] == expected
    assert (await api.post(f"{CHAT}/render", json=body)).json()["token_ids"] == expected
    rendered = (await api.post(f"{CHAT}/render", json={**body, "tool_choice": "required"})).json()
    assert rendered["sampling_params"]["structured_outputs"]["json"].startswith('{"type": "array"')
    await asked(api, tools=[WEATHER, SEARCH])
    assert sampling_of(api).structured_outputs is None
    (group,) = api.link.sent_of(AddGroup)
    assert group.requests[0].prompt.tolist() == expected


async def test_conversation_goes_on_after_a_call(make_api: MakeApi) -> None:
    template = (
        "{# <tool_call> #}{% for m in messages %}{{ m.role[0] }}{{ m.content }}{{ m.tool_call_id }}"
        "{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}{% endfor %}"
    )
    api = api_that_says(make_api, "ok", chat_template=template)
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    history = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "7"}]},
    ]
    await asked(api, messages=history, tools=[WEATHER])
    (group,) = api.link.sent_of(AddGroup)
    assert api.client.tokenizer.decode(group.requests[0].prompt.tolist()) == "uwaweather(Ulm)t7c1"
