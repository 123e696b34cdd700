"""/v1/messages, called by Anthropic's client, in front of an engine that says what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anthropic
import pytest

from headway.request import FinishReason
from headway.server.messages_api.body import MessagesRequest
from headway.wire import to_engine
from tests.server.api_clients import anthropic_client, reads_calls, spelled
from tests.server.conftest import Api
from tests.server.fakes import ANSWER, MODEL, settled

MakeApi = Callable[..., Api]
USER = {"role": "user", "content": "hi"}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call>'


def prompt_of(api: Api) -> str:
    """The text of the prompt that the engine has got last."""
    (add,) = api.link.sent_of(to_engine.AddGroup)[-1].requests
    return str(api.client.tokenizer.decode(add.prompt))


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 64, "messages": [USER], **fields}


async def create(api: Api, **fields: Any) -> Any:
    return await anthropic_client(api).messages.create(**asked(**fields))


async def streamed(api: Api, **fields: Any) -> list[Any]:
    return [event async for event in await create(api, stream=True, **fields)]


# -- whole messages


async def test_a_message_is_text(make_api: MakeApi) -> None:
    api = make_api(reason=FinishReason.STOP)
    message = await create(api, system="be")
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert [(block.type, block.text) for block in message.content] == [("text", ANSWER)]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None) and message.id.startswith("msg_")
    assert prompt_of(api) == "<|system|>be<|user|>hi<|assistant|>"


async def test_the_usage_parts_the_input_into_cached_and_not(api: Api) -> None:
    usage = (await create(api)).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (21, 2, 5)


async def test_blocks_of_system_and_content_are_texts(api: Api) -> None:
    system = [{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}]
    parts = [{"type": "text", "text": "hi"}, {"type": "text", "text": "you"}]
    await create(api, system=system, messages=[{"role": "user", "content": parts}])
    assert prompt_of(api) == "<|system|>be<|user|>hi\nyou<|assistant|>"


async def test_a_conversation_that_ends_with_the_assistant_is_continued(api: Api) -> None:
    await create(api, messages=[USER, {"role": "assistant", "content": "so"}])
    assert prompt_of(api) == "<|user|>hi<|assistant|>so"


@pytest.mark.parametrize("stream", [False, True])
async def test_why_a_message_stopped(make_api: MakeApi, stream: bool) -> None:
    async def told(api: Api, **fields: Any) -> tuple[str, str | None, str]:
        if not stream:
            message = await create(api, **fields)
        else:
            async with anthropic_client(api).messages.stream(**asked(**fields)) as events:
                message = await events.get_final_message()
        return message.stop_reason, message.stop_sequence, "".join(block.text for block in message.content)

    assert await told(make_api(), max_tokens=2) == ("max_tokens", None, "he")
    assert await told(make_api(), stop_sequences=["x", "l"]) == ("stop_sequence", "l", "he")
    assert await told(make_api(reason=FinishReason.STOP)) == ("end_turn", None, ANSWER)
    assert await told(make_api(reason=FinishReason.ABORT)) == ("pause_turn", None, ANSWER)


async def test_thinking_and_uses_of_tools_are_blocks_of_their_own(make_api: MakeApi) -> None:
    api = make_api(max_model_len=512, answer=spelled(f"<think>so</think>well{CALL}"), reason=FinishReason.STOP)
    reads_calls(api, "add")
    message = await create(api, max_tokens=200)
    thought, text, use = message.content
    assert (thought.thinking, text.text, use.name, use.input) == ("so", "well", "add", {"a": 1, "b": [2]})
    assert message.stop_reason == "tool_use" and use.id.startswith("call_")


async def test_arguments_that_were_cut_short_are_given_as_far_as_they_are_complete(make_api: MakeApi) -> None:
    api = make_api(max_model_len=512, answer=spelled(f"<think></think>{CALL[:-20]}"))
    reads_calls(api, "add")
    events = await streamed(api, max_tokens=200)
    parts = [event.delta.partial_json for event in events if event.type == "content_block_delta"]
    assert "".join(parts).startswith('{"a": 1') and events[-2].delta.stop_reason == "max_tokens"


# -- streams


async def test_a_stream_is_the_same_message_in_pieces(make_api: MakeApi) -> None:
    api = make_api(max_model_len=512, answer=spelled(f"<think>so</think>well{CALL}"), reason=FinishReason.STOP)
    reads_calls(api, "add")
    whole = await create(api, max_tokens=200)
    async with anthropic_client(api).messages.stream(**asked(max_tokens=200)) as stream:
        kinds = [event.type async for event in stream]
        last = await stream.get_final_message()

    def told(message: Any) -> Any:
        shown = {"content": {"__all__": {"type", "text", "thinking", "name", "input"}}, "stop_reason": True}
        return message.model_dump(include=shown)

    assert told(last) == told(whole) and last.usage.output_tokens == whole.usage.output_tokens
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert {"text", "thinking", "input_json"} <= set(kinds)


async def test_a_stream_opens_and_closes_each_block_in_turn(make_api: MakeApi) -> None:
    api = make_api(max_model_len=512, answer=spelled(f"<think>so</think>well{CALL}{CALL}"), reason=FinishReason.STOP)
    reads_calls(api, "add")
    response = await api.post("/v1/messages", json=asked(stream=True, max_tokens=300))
    names = [line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")]
    assert names[:2] == ["message_start", "ping"] and names[-2:] == ["message_delta", "message_stop"]
    assert "[DONE]" not in response.text
    open_block, num_blocks = False, 0
    for name in names[2:-2]:
        if name == "content_block_start":
            assert not open_block
            num_blocks += 1
        assert name == "content_block_start" or open_block
        open_block = name != "content_block_stop"
    assert num_blocks == 4 and not open_block


async def test_a_failure_in_the_middle_of_a_stream_comes_in_the_form_of_the_api(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    task = asyncio.create_task(streamed(api))
    while not api.link.sent:
        await asyncio.sleep(0)
    uid = api.link.sent_of(to_engine.AddGroup)[0].requests[0].uid
    api.link.step([uid], api.link.tokens[:1])
    await settled()
    api.link.end("killed by SIGKILL")
    with pytest.raises(anthropic.APIStatusError, match="killed by SIGKILL") as failed:
        await task
    assert failed.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index,call-overload]


# -- what a body asks for


def chat_of(**fields: Any) -> Any:
    return MessagesRequest.model_validate(asked(**fields)).chat


def test_results_of_tools_come_before_the_text_beside_them() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "2"}]}
    conversation = [
        USER,
        {"role": "assistant", "content": [{"type": "text", "text": "well"}, use]},
        {"role": "user", "content": [{"type": "text", "text": "and now?"}, result]},
    ]
    messages = chat_of(messages=conversation).messages
    assert [message.role for message in messages] == ["user", "assistant", "tool", "user"]
    assert messages[1].tool_calls[0].function.arguments == {"a": 1}
    assert messages[2].tool_call_id == "t1" and messages[2].texts() == ["2"]


def test_tools_and_their_choice_are_those_of_a_chat() -> None:
    tools = [{"name": "add", "description": "adds", "input_schema": {"type": "object"}, "cache_control": None}]
    chat = chat_of(tools=tools, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert chat.tools[0].for_template()["function"] == {
        "name": "add",
        "description": "adds",
        "parameters": {"type": "object"},
    }
    assert (chat.tool_choice, chat.parallel_tool_calls) == ("required", False)
    assert chat_of(tools=tools, tool_choice={"type": "tool", "name": "add"}).tool_choice.function.name == "add"
    assert chat_of(tools=tools, tool_choice={"type": "none"}).tool_choice == "none"
    assert chat_of(tools=tools).use_of_tools == "auto"


def test_thinking_is_a_variable_of_the_template_and_thoughts_are_given_back_to_it() -> None:
    assert chat_of(thinking={"type": "enabled", "budget_tokens": 8}).variables()["enable_thinking"] is True
    assert chat_of(thinking={"type": "disabled"}).variables()["enable_thinking"] is False
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    said = {"role": "assistant", "content": [thought, {"type": "redacted_thinking", "data": "x"}]}
    assert chat_of(messages=[USER, said, USER]).messages[1].for_template()["reasoning_content"] == "hm"


def test_a_format_of_the_output_is_a_strict_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    config = {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    chat = chat_of(output_config=config)
    assert chat.reasoning_effort == "low" and chat.form().json is not None


# -- counting


async def test_tokens_are_counted_as_a_message_counts_them(api: Api) -> None:
    counted = await anthropic_client(api).messages.count_tokens(model=MODEL, messages=[USER], system="be")
    usage = (await create(api, system="be")).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


async def test_tokens_of_the_very_body_of_a_message_are_counted(api: Api) -> None:
    """What makes no difference to the prompt is ignored, as vLLM does."""
    body = {"model": MODEL, "messages": [USER], "max_tokens": 5, "stream": True, "temperature": 0.5}
    plain = await api.post("/v1/messages/count_tokens", json={"messages": [USER]})
    counted = await api.post("/v1/messages/count_tokens", json=body)
    assert (counted.status_code, counted.json()) == (200, plain.json())


# -- refusals


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"messages": []}, "at least 1"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "robot"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "document"),
        ({"system": [{"type": "image"}]}, "image"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{"name": "add"}]}, "input_schema"),
        ({"tool_choice": {"type": "tool"}}, "name"),
        ({"thinking": {"type": "enabled", "budget_tokens": 64}}, "less than max_tokens"),
        ({"container": "c"}, "container"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"extra_body": {"n": 2}}, "got 2"),
        ({"extra_body": {"top_p": 0}}, "top_p"),
        ({"extra_body": {"mcp_servers": [{"name": "x"}]}}, "mcp_servers"),
    ],
)
async def test_what_cannot_be_done_is_refused_in_the_form_of_the_api(
    api: Api, fields: dict[str, Any], why: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=why) as refused:
        await create(api, **fields)
    body: Any = refused.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert not api.link.sent


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}])
async def test_a_conversation_that_the_server_should_keep_is_refused_so_that_the_client_sends_it_whole(
    api: Api, thread: dict[str, str]
) -> None:
    """Without the history an answer would be wrong. The client looks at the details."""
    with pytest.raises(anthropic.BadRequestError, match="send all messages") as told:
        await create(api, extra_body={"thread": thread})
    assert told.value.body["error"]["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }
    assert not api.link.sent_of(to_engine.AddGroup)


async def test_another_model_is_not_found(api: Api) -> None:
    with pytest.raises(anthropic.NotFoundError, match="does not exist") as refused:
        await create(api, model="other")
    assert refused.value.body["error"]["type"] == "not_found_error"  # type: ignore[index,call-overload]


async def test_every_error_on_the_paths_of_the_api_has_its_form(make_api: MakeApi) -> None:
    api = make_api(refuse=("queue_full", "the queue is full"))
    answers = [
        await api.get("/v1/messages"),
        await api.post("/v1/messages", content=b"{", headers={"Content-Type": "application/json"}),
        await api.post("/v1/messages", content=b"{}", headers={"Content-Type": "text/plain"}),
        await api.post("/v1/messages/batches", json={}),
        await api.post("/v1/messages", json=asked()),
    ]
    assert [answer.status_code for answer in answers] == [405, 400, 415, 404, 503]
    assert [answer.json()["type"] for answer in answers] == ["error"] * 5
    assert answers[-1].json()["error"]["type"] == "overloaded_error" and answers[-1].headers["Retry-After"]


async def test_headers_of_the_api_and_fields_that_change_nothing_are_taken(api: Api) -> None:
    extra = {"extra_headers": {"anthropic-version": "2023-06-01", "anthropic-beta": "x"}, "metadata": {"user_id": "u"}}
    assert (await create(api, **extra, service_tier="auto")).content[0].text == ANSWER
