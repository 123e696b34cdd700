"""/v1/responses, called by OpenAI's client, in front of an engine that says what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest

from headway.request import FinishReason
from headway.server.responses_api.body import ResponsesRequest
from headway.wire import to_engine
from tests.server.api_clients import openai_client, reads_calls, spelled
from tests.server.conftest import Api
from tests.server.fakes import ANSWER, MAX_MODEL_LEN, MODEL, settled

MakeApi = Callable[..., Api]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call>'


def prompt_of(api: Api) -> str:
    """The text of the prompt that the engine has got last."""
    (add,) = api.link.sent_of(to_engine.AddGroup)[-1].requests
    return str(api.client.tokenizer.decode(add.prompt))


async def create(api: Api, **fields: Any) -> Any:
    return await openai_client(api).responses.create(**{"model": MODEL, "input": "hi", **fields})


async def streamed(api: Api, **fields: Any) -> list[Any]:
    return [event async for event in await create(api, stream=True, **fields)]


# -- whole responses


async def test_a_response_is_a_message(make_api: MakeApi) -> None:
    api = make_api(reason=FinishReason.STOP)
    response = await create(api, instructions="be", metadata={"a": "b"})
    assert response.output_text == ANSWER and response.status == "completed" and response.id.startswith("resp_")
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert (response.instructions, response.metadata, response.store) == ("be", {"a": "b"}, False)
    assert prompt_of(api) == "<|system|>be<|user|>hi<|assistant|>"


async def test_the_usage_counts_input_output_and_what_was_cached(api: Api) -> None:
    usage = (await create(api)).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (23, 5, 28)
    assert usage.input_tokens_details.cached_tokens == 2 and usage.output_tokens_details.reasoning_tokens == 0


async def test_an_answer_that_is_cut_short_is_incomplete(api: Api) -> None:
    response = await create(api, max_output_tokens=2)
    assert (response.status, response.output_text) == ("incomplete", "he")
    assert response.incomplete_details.reason == "max_output_tokens" and response.output[0].status == "incomplete"


async def test_an_answer_without_text_is_an_empty_message(make_api: MakeApi) -> None:
    api = make_api(answer=spelled("a"), reason=FinishReason.STOP)
    response = await create(api, extra_body={"stop": "a"})
    assert [item.type for item in response.output] == ["message"] and response.output_text == ""


async def test_items_of_earlier_answers_become_the_conversation(api: Api) -> None:
    first = await create(api)
    turn = {"role": "user", "content": [{"type": "input_text", "text": "more"}]}
    await create(api, input=[{"role": "user", "content": "hi"}, *first.output, turn])
    assert prompt_of(api) == "<|user|>hi<|assistant|>hello<|user|>more<|assistant|>"


async def test_logprobs_come_with_the_text_if_they_are_asked_for(api: Api) -> None:
    response = await create(api, include=["message.output_text.logprobs"], top_logprobs=1, max_output_tokens=2)
    (part,) = response.output[0].content
    assert [(entry.token, entry.logprob) for entry in part.logprobs] == [("h", -1.0), ("e", -1.0)]
    assert [entry.top_logprobs[0].token for entry in part.logprobs] == ["h", "e"]


async def test_sampling_fields_reach_the_engine(api: Api) -> None:
    await create(api, temperature=0.25, top_p=0.5, extra_body={"seed": 7, "request_id": "mine", "cache_salt": "s"})
    (add,) = api.link.sent_of(to_engine.AddGroup)[0].requests
    assert (add.sampling.temperature, add.sampling.top_p, add.sampling.seed) == (0.25, 0.5, 7)
    assert (add.request_id, add.cache_salt) == ("mine", "s")


async def test_reasoning_and_calls_are_items_of_their_own(make_api: MakeApi) -> None:
    api = make_api(answer=spelled(f"<think>so</think>well{CALL}"), reason=FinishReason.STOP)
    reads_calls(api, "add")
    response = await create(api)
    thought, message, call = response.output
    assert (thought.type, thought.content[0].text, message.content[0].text) == ("reasoning", "so", "well")
    assert (call.type, call.name, call.arguments, call.status) == (
        "function_call",
        "add",
        '{"a": 1, "b": [2]}',
        "completed",
    )
    assert call.call_id.startswith("call_") and response.status == "completed"
    assert 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens


async def test_a_long_input_is_cut_only_if_that_is_asked_for(api: Api) -> None:
    assert (await create(api, input="x" * 80)).usage.input_tokens > MAX_MODEL_LEN  # a real engine refuses it
    response = await create(api, input="x" * 80, truncation="auto")
    assert response.usage.input_tokens == MAX_MODEL_LEN - 1 and response.truncation == "auto"


# -- streams


async def test_a_stream_tells_a_message_from_its_first_event_to_its_last(make_api: MakeApi) -> None:
    events = await streamed(make_api(reason=FinishReason.STOP))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert events[0].response.output == [] and events[-1].response.output_text == ANSWER
    assert events[-1].response.usage.output_tokens == 5


async def test_a_stream_is_the_same_response_in_pieces(make_api: MakeApi) -> None:
    api = make_api(answer=spelled(f"<think>so</think>well{CALL}"), reason=FinishReason.STOP)
    reads_calls(api, "add")
    whole = await create(api)
    async with openai_client(api).responses.stream(model=MODEL, input="hi") as stream:
        kinds = {event.type async for event in stream}
        last = await stream.get_final_response()

    def told(response: Any) -> Any:
        return [item.model_dump(exclude={"id", "call_id", "parsed_arguments"}) for item in response.output]

    def plain(items: Any) -> Any:
        for item in items:
            for part in item.get("content") or ():
                part.pop("parsed", None)
        return items

    assert plain(told(last)) == plain(told(whole)) and last.usage == whole.usage
    assert {"response.reasoning_text.delta", "response.reasoning_text.done"} <= kinds
    assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= kinds


async def test_every_item_of_a_stream_is_added_before_it_goes_on_and_done_before_the_next(make_api: MakeApi) -> None:
    api = make_api(answer=spelled(f"<think>so</think>well{CALL}{CALL}"), reason=FinishReason.STOP)
    reads_calls(api, "add")
    open_item = None
    num_items = 0
    for event in await streamed(api):
        if event.type == "response.output_item.added":
            assert open_item is None and event.output_index == num_items
            open_item = event.item.id
            num_items += 1
        elif event.type == "response.output_item.done":
            assert event.item.id == open_item
            open_item = None
        elif hasattr(event, "item_id"):
            assert event.item_id == open_item and event.output_index == num_items - 1
    assert num_items == 4 and open_item is None


async def test_a_stream_that_is_cut_short_ends_as_incomplete(api: Api) -> None:
    last = (await streamed(api, max_output_tokens=2))[-1]
    assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "max_output_tokens"


async def test_a_failure_in_the_middle_of_a_stream_is_a_failed_response(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    task = asyncio.create_task(streamed(api))
    while not api.link.sent:
        await asyncio.sleep(0)
    uid = api.link.sent_of(to_engine.AddGroup)[0].requests[0].uid
    api.link.step([uid], api.link.tokens[:1])
    await settled()
    api.link.end("killed by SIGKILL")
    last = (await task)[-1]
    assert last.type == "response.failed" and last.response.status == "failed"
    assert "killed by SIGKILL" in last.response.error.message


# -- what a body asks for


def chat_of(**fields: Any) -> Any:
    return ResponsesRequest.model_validate({"input": "hi", **fields}).chat


def test_tools_and_their_choice_are_those_of_a_chat() -> None:
    tools = [
        {"type": "function", "name": name, "parameters": {"type": "object"}, "strict": None} for name in ("add", "sub")
    ]
    chat = chat_of(tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert [tool.function.name for tool in chat.tools] == ["add", "sub"] and chat.tools[0].function.strict is None
    assert (chat.tool_choice, chat.parallel_tool_calls) == ("required", False)
    assert chat_of(tools=tools, tool_choice={"type": "function", "name": "sub"}).called_tool.function.name == "sub"
    some = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "sub"}]}
    chat = chat_of(tools=tools, tool_choice=some)
    assert [tool.function.name for tool in chat.tools] == ["sub"] and chat.tool_choice == "required"


def test_calls_and_their_outputs_go_on_as_a_chat() -> None:
    reasoning = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
    output = {"type": "function_call_output", "call_id": "c1", "output": "2"}
    items = [{"role": "user", "content": "hi"}, reasoning, {"role": "assistant", "content": "well"}, call, output]
    messages = [message.for_template() for message in chat_of(input=items).messages]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert (messages[1]["reasoning_content"], messages[1]["content"]) == ("hm", "well")
    assert messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert (messages[2]["tool_call_id"], messages[2]["content"]) == ("c1", "2")


def test_the_format_of_the_text_is_the_form_of_a_chat() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    format_ = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    assert chat_of(text={"format": format_}).form().json is not None
    assert chat_of(text={"format": {"type": "json_object"}}).form().json_object
    assert chat_of(text={"format": {"type": "text"}, "verbosity": "medium"}).form() is None


def test_the_effort_of_reasoning_reaches_the_template() -> None:
    assert chat_of(reasoning={"effort": "low", "summary": "auto"}).variables()["reasoning_effort"] == "low"


# -- refusals


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored"),
        ({"conversation": "conv_1"}, "conversation", "nothing is stored"),
        ({"background": True}, "background", "nothing is stored"),
        ({"prompt": {"id": "p"}}, "prompt", "not stored"),
        ({"truncation": "most"}, "truncation", "most"),
        *(
            ({"tools": [{"type": kind}]}, "tools[0]", kind)
            for kind in ("web_search", "file_search", "code_interpreter", "mcp", "computer_use_preview", "custom")
        ),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "web_search"),
        ({"input": []}, None, "input has no message"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "nothing is stored"),
        ({"input": [{"type": "computer_call"}]}, "input[0]", "computer_call"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role", "robot"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "input_image"),
        ({"input": [{"type": "reasoning", "id": "r", "summary": []}]}, None, "input has no message"),
        ({"max_output_tokens": 0}, "max_output_tokens", "0"),
        ({"extra_body": {"n": 2}}, "n", "2"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "huge"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    api: Api, fields: dict[str, Any], param: str | None, why: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=why) as refused:
        await create(api, **fields)
    assert refused.value.param == param and refused.value.type == "invalid_request_error"
    assert not api.link.sent


async def test_another_model_is_not_found(api: Api) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await create(api, model="other")


async def test_an_unknown_field_is_ignored(api: Api) -> None:
    assert (await create(api, extra_body={"no_such_field": 1, "store": True})).output_text == ANSWER


async def test_no_response_is_stored(api: Api) -> None:
    responses = openai_client(api).responses
    made = await create(api)
    for call in (responses.retrieve, responses.delete, responses.cancel, responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="nothing is stored"):
            await call(made.id)


async def test_a_full_queue_is_told_with_the_status_of_all_routes(make_api: MakeApi) -> None:
    with pytest.raises(openai.InternalServerError, match="full") as refused:
        await create(make_api(refuse=("queue_full", "the queue is full")))
    assert refused.value.status_code == 503 and refused.value.code == "queue_full"
