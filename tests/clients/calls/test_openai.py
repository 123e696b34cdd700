"""OpenAI's own client for Python."""

import json
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
PARIS = {"role": "user", "content": "What is the weather in Paris?"}
BOTH = {"role": "user", "content": "What is the weather in Paris and in Rome?"}
SUM = [{"role": "user", "content": "12+34="}]


class Weather(BaseModel):
    city: str
    degrees: int


class Verdict(BaseModel):
    larger: Literal["9", "11"]
    sure: bool


def client(server, **options) -> OpenAI:
    return OpenAI(base_url=server.v1, api_key=server.key, **{"max_retries": 0, "timeout": 60, **options})


@pytest.mark.shows("answer")
def test_an_answer_says_why_it_ended_and_what_it_used(sums) -> None:
    done = client(sums).chat.completions.create(model=sums.model, messages=SUM, temperature=0)
    assert done.choices[0].message.content == "46" and done.choices[0].finish_reason == "stop"
    assert done.usage is not None and done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


@pytest.mark.shows("streaming")
def test_the_pieces_of_a_stream_are_the_answer(sums) -> None:
    with client(sums).chat.completions.stream(model=sums.model, messages=SUM) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
    assert "".join(pieces) == "46" == stream.get_final_completion().choices[0].message.content


@pytest.mark.shows("usage in the stream")
def test_the_last_chunk_has_the_usage(sums) -> None:
    chunks = list(
        client(sums).chat.completions.create(
            model=sums.model, messages=SUM, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.shows("completions")
def test_completions_take_several_prompts(sums) -> None:
    done = client(sums).completions.create(model=sums.model, prompt=["12+34=", "copy ab1="], temperature=0)
    assert [choice.text for choice in done.choices] == ["46", "ab1"]


@pytest.mark.shows("log probabilities")
def test_log_probabilities_of_the_tokens_and_their_rivals(sums) -> None:
    done = client(sums).chat.completions.create(model=sums.model, messages=SUM, logprobs=True, top_logprobs=3)
    tokens = done.choices[0].logprobs.content
    assert "".join(token.token for token in tokens[:2]) == "46" and len(tokens[0].top_logprobs) == 3
    assert tokens[0].logprob == max(rival.logprob for rival in tokens[0].top_logprobs)


@pytest.mark.shows("log probabilities")
def test_completions_give_the_log_probabilities_of_the_prompt(sums) -> None:
    done = client(sums).completions.create(model=sums.model, prompt="12+34=46", echo=True, logprobs=1, max_tokens=0)
    assert done.choices[0].text == "12+34=46"
    assert done.choices[0].logprobs.token_logprobs[-1] > -0.1


@pytest.mark.shows("several answers")
def test_several_answers(sums) -> None:
    done = client(sums).chat.completions.create(model=sums.model, messages=SUM, n=3, temperature=1, seed=1)
    assert [choice.index for choice in done.choices] == [0, 1, 2]


@pytest.mark.shows("stop strings")
def test_a_stop_string_ends_the_answer(sums) -> None:
    ask = [{"role": "user", "content": "copy abc7="}]
    done = client(sums).chat.completions.create(model=sums.model, messages=ask, stop=["c"])
    assert done.choices[0].message.content == "ab" and done.choices[0].finish_reason == "stop"


@pytest.mark.shows("seed")
def test_a_seed_repeats_an_answer(sums) -> None:
    ask = {"model": sums.model, "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 12}
    one, two = (client(sums).chat.completions.create(**ask, temperature=1.5, seed=7) for _ in range(2))
    assert one.choices[0].message.content == two.choices[0].message.content


@pytest.mark.shows("fields of vLLM")
def test_fields_of_vllm_go_in_extra_body(sums) -> None:
    ask = [{"role": "user", "content": "Is 9 larger?"}]
    done = client(sums).chat.completions.create(
        model=sums.model, messages=ask, extra_body={"structured_outputs": {"choice": ["yes", "no"]}, "top_k": 5}
    )
    assert done.choices[0].message.content in ("yes", "no")


@pytest.mark.shows("JSON mode")
def test_json_mode(talker) -> None:
    ask = [{"role": "user", "content": "Give me the weather in Paris as JSON."}]
    done = client(talker).chat.completions.create(
        model=talker.model, messages=ask, response_format={"type": "json_object"}, max_tokens=60
    )
    assert json.loads(done.choices[0].message.content) == {"city": "Paris", "degrees": 21}


@pytest.mark.shows("JSON schema")
def test_parse_gives_an_object_of_the_class(talker) -> None:
    ask = [{"role": "user", "content": "Give me the weather in Paris as JSON."}]
    done = client(talker).chat.completions.parse(
        model=talker.model, messages=ask, response_format=Weather, max_tokens=60
    )
    assert done.choices[0].message.parsed == Weather(city="Paris", degrees=21)


@pytest.mark.shows("JSON schema")
def test_a_schema_holds_a_model_that_knows_nothing_of_it(sums) -> None:
    done = client(sums).chat.completions.parse(
        model=sums.model, messages=SUM, response_format=Verdict, max_tokens=600, temperature=0
    )
    assert isinstance(done.choices[0].message.parsed, Verdict)


@pytest.mark.shows("tools: auto")
def test_the_model_chooses_to_call_a_tool(talker) -> None:
    done = client(talker).chat.completions.create(model=talker.model, messages=[PARIS], tools=[WEATHER])
    (call,) = done.choices[0].message.tool_calls
    assert done.choices[0].finish_reason == "tool_calls" and not done.choices[0].message.content
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})


@pytest.mark.shows("tools: auto")
def test_the_model_chooses_not_to_call_a_tool(talker) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    done = client(talker).chat.completions.create(model=talker.model, messages=hello, tools=[WEATHER])
    assert done.choices[0].message.content == "Hello! Ask me about the weather."
    assert not done.choices[0].message.tool_calls and done.choices[0].finish_reason == "stop"


@pytest.mark.shows("tools: required")
def test_a_call_can_be_required(sums) -> None:
    done = client(sums).chat.completions.create(
        model=sums.model, messages=SUM, tools=[WEATHER], tool_choice="required", max_tokens=600, temperature=0
    )
    call = done.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


@pytest.mark.shows("tools: named")
def test_a_tool_can_be_named(sums) -> None:
    done = client(sums).chat.completions.create(
        model=sums.model,
        messages=SUM,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=600,
        temperature=0,
    )
    (call,) = done.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


@pytest.mark.shows("tools: several at once")
def test_several_calls_in_one_answer(talker) -> None:
    done = client(talker).chat.completions.create(model=talker.model, messages=[BOTH], tools=[WEATHER])
    calls = done.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Rome"]
    assert len({call.id for call in calls}) == 2


@pytest.mark.shows("tools: streamed")
def test_the_pieces_of_calls_join_to_the_calls(talker) -> None:
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for chunk in client(talker).chat.completions.create(
        model=talker.model, messages=[BOTH], tools=[WEATHER], stream=True
    ):
        for piece in chunk.choices[0].delta.tool_calls or ():
            names[piece.index] = names.get(piece.index, "") + (piece.function.name or "")
            arguments[piece.index] = arguments.get(piece.index, "") + (piece.function.arguments or "")
        ended = chunk.choices[0].finish_reason
    assert ended == "tool_calls" and names == {0: "get_weather", 1: "get_weather"}
    assert [json.loads(text)["city"] for text in arguments.values()] == ["Paris", "Rome"]


@pytest.mark.shows("tools: streamed")
def test_the_helper_of_streams_gives_parsed_arguments(talker) -> None:
    with client(talker).chat.completions.stream(model=talker.model, messages=[PARIS], tools=[WEATHER]) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [{"city": "Paris"}]


@pytest.mark.shows("tool results")
def test_the_answer_after_the_results_of_tools(talker) -> None:
    chat = client(talker).chat.completions
    first = chat.create(model=talker.model, messages=[PARIS], tools=[WEATHER]).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny, 21 degrees"}
    done = chat.create(
        model=talker.model, messages=[PARIS, first.model_dump(exclude_none=True), result], tools=[WEATHER]
    )
    assert done.choices[0].message.content == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("reasoning")
def test_the_reasoning_stands_beside_the_answer(thinker) -> None:
    ask = [{"role": "user", "content": "Which is larger, 9 or 11?"}]
    message = client(thinker).chat.completions.create(model=thinker.model, messages=ask).choices[0].message
    assert message.content == "11 is larger."
    assert message.reasoning == "11 is 9 and 2 more."


@pytest.mark.shows("reasoning, streamed")
def test_the_reasoning_is_streamed_in_pieces_of_its_own(thinker) -> None:
    ask = [{"role": "user", "content": "Which is larger, 9 or 11?"}]
    deltas = [
        chunk.choices[0].delta
        for chunk in client(thinker).chat.completions.create(model=thinker.model, messages=ask, stream=True)
    ]
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == "11 is 9 and 2 more."
    assert "".join(delta.content or "" for delta in deltas) == "11 is larger."


@pytest.mark.shows("list of models")
def test_the_list_of_models(sums) -> None:
    assert [model.id for model in client(sums).models.list()] == [sums.model]
    assert client(sums).models.retrieve(sums.model).id == sums.model


@pytest.mark.shows("responses API")
def test_the_responses_api(sums) -> None:
    done = client(sums).responses.create(model=sums.model, input="12+34=", temperature=0)
    assert done.output_text == "46" and done.status == "completed" and done.usage.output_tokens > 0


@pytest.mark.shows("responses API")
def test_the_responses_api_streams(sums) -> None:
    with client(sums).responses.stream(model=sums.model, input="12+34=") as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(pieces) == "46" == stream.get_final_response().output_text


@pytest.mark.shows("responses API")
def test_the_responses_api_calls_tools(talker) -> None:
    responses = client(talker).responses
    tools = [{"type": "function", **WEATHER["function"]}]
    ask = [PARIS]
    first = responses.create(model=talker.model, input=ask, tools=tools)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    ask += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 21 degrees"}]
    assert responses.create(model=talker.model, input=ask, tools=tools).output_text.startswith("It is sunny in Paris")


@pytest.mark.shows("responses API")
def test_the_responses_api_refuses_a_response_that_it_did_not_keep(sums) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client(sums).responses.create(model=sums.model, input="12+34=", previous_response_id="resp_1")


@pytest.mark.shows("embeddings", "refused by name")
def test_embeddings_are_refused_by_name(sums) -> None:
    with pytest.raises(openai.APIStatusError, match="mbedding") as told:
        client(sums).embeddings.create(model=sums.model, input="12+34=")
    assert told.value.status_code in (400, 404, 501)


@pytest.mark.shows("context overflow")
def test_a_prompt_beyond_the_context_has_the_code_that_clients_look_for(sums) -> None:
    ask = [{"role": "user", "content": "1+" * 4000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is") as told:
        client(sums).chat.completions.create(model=sums.model, messages=ask)
    assert told.value.code == "context_length_exceeded"


@pytest.mark.shows("wrong key")
def test_a_wrong_key_is_an_authentication_error(sums) -> None:
    with pytest.raises(openai.AuthenticationError):
        client(sums).with_options(api_key="wrong").chat.completions.create(model=sums.model, messages=SUM)


@pytest.mark.shows("unknown model")
def test_an_unknown_model_is_not_found(sums) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client(sums).chat.completions.create(model="gpt-5", messages=SUM)


@pytest.mark.shows("time-out")
def test_a_request_that_is_given_up_leaves_nothing_behind(sums) -> None:
    ask = {"model": sums.model, "prompt": "12+34=", "max_tokens": 900, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APITimeoutError):
        client(sums, timeout=0.2, max_retries=1).completions.create(**ask)
    assert sums.is_idle_soon()


@pytest.mark.shows("client gone")
def test_a_stream_that_is_closed_ends_the_request(sums) -> None:
    ask = {"model": sums.model, "prompt": "12+34=", "max_tokens": 900, "extra_body": {"ignore_eos": True}}
    with client(sums).completions.create(**ask, stream=True) as stream:
        next(iter(stream))
    assert sums.is_idle_soon()


@pytest.mark.shows("many at once")
async def test_many_at_once(sums) -> None:
    import asyncio

    ask = AsyncOpenAI(base_url=sums.v1, api_key=sums.key).chat.completions
    questions = [[{"role": "user", "content": f"{number}+5="}] for number in range(10, 26)]
    answers = await asyncio.gather(
        *(ask.create(model=sums.model, messages=question, temperature=0) for question in questions)
    )
    assert [done.choices[0].message.content for done in answers] == [str(number + 5) for number in range(10, 26)]


@pytest.mark.shows("files and batches", "refused by name")
def test_files_and_batches_are_refused_with_the_command_that_answers_them(sums) -> None:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": SUM}}
    with pytest.raises(openai.NotFoundError, match="headway run-batch"):
        client(sums).files.create(file=("questions.jsonl", json.dumps(line).encode()), purpose="batch")
    with pytest.raises(openai.NotFoundError, match="headway run-batch"):
        client(sums).batches.list()
