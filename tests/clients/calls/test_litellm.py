"""litellm, by its provider for servers that speak OpenAI's API."""

import json
from typing import Any

import litellm
import pytest
from pydantic import BaseModel

SUM = [{"role": "user", "content": "12+34="}]
PARIS = {"role": "user", "content": "What is the weather in Paris?"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}


class Weather(BaseModel):
    city: str
    degrees: int


def ask(server, messages, **options) -> Any:
    return litellm.completion(
        model=f"hosted_vllm/{server.model}",
        api_base=server.v1,
        api_key=options.pop("api_key", server.key),
        messages=messages,
        max_retries=0,
        **options,
    )


@pytest.mark.shows("answer")
def test_an_answer(sums) -> None:
    done = ask(sums, SUM, temperature=0)
    assert done.choices[0].message.content == "46" and done.usage.completion_tokens > 0


@pytest.mark.shows("streaming")
@pytest.mark.shows("usage in the stream")
def test_a_stream_with_usage(sums) -> None:
    chunks = list(ask(sums, SUM, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "46"
    assert chunks[-1].usage.completion_tokens > 0


@pytest.mark.shows("completions")
def test_a_completion(sums) -> None:
    done = litellm.text_completion(
        model=f"text-completion-openai/{sums.model}", api_base=sums.v1, api_key=sums.key, prompt="12+34=", temperature=0
    )
    assert done.choices[0].text == "46"


@pytest.mark.shows("log probabilities")
def test_log_probabilities(sums) -> None:
    done = ask(sums, SUM, logprobs=True, top_logprobs=2)
    assert len(done.choices[0].logprobs.content[0].top_logprobs) == 2


@pytest.mark.shows("several answers")
@pytest.mark.shows("seed")
def test_several_answers_from_a_seed(sums) -> None:
    hello = [{"role": "user", "content": "Hello?"}]
    one, two = (ask(sums, hello, n=2, seed=3, temperature=1.0, max_tokens=8) for _ in range(2))
    assert [choice.message.content for choice in one.choices] == [choice.message.content for choice in two.choices]
    assert len(one.choices) == 2


@pytest.mark.shows("stop strings")
def test_a_stop_string(sums) -> None:
    assert ask(sums, [{"role": "user", "content": "copy abc7="}], stop=["c"]).choices[0].message.content == "ab"


@pytest.mark.shows("JSON mode")
@pytest.mark.shows("JSON schema")
@pytest.mark.parametrize("form", [{"type": "json_object"}, Weather], ids=["mode", "schema"])
def test_json(talker, form) -> None:
    question = [{"role": "user", "content": "Give me the weather in Paris as JSON."}]
    done = ask(talker, question, response_format=form, max_tokens=60)
    assert json.loads(done.choices[0].message.content) == {"city": "Paris", "degrees": 21}


@pytest.mark.shows("tools: auto")
@pytest.mark.shows("tool results")
def test_a_call_and_the_answer_after_its_result(talker) -> None:
    first = ask(talker, [PARIS], tools=[WEATHER]).choices[0].message
    (call,) = first.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": "sunny, 21 degrees"}
    done = ask(talker, [PARIS, first.model_dump(), result], tools=[WEATHER])
    assert done.choices[0].message.content == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("tools: required")
@pytest.mark.shows("tools: named")
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=str)
def test_a_tool_can_be_required(sums, choice) -> None:
    done = ask(sums, SUM, tools=[WEATHER], tool_choice=choice, max_tokens=600, temperature=0)
    assert json.loads(done.choices[0].message.tool_calls[0].function.arguments)["city"] in ("Paris", "Rome")


@pytest.mark.shows("tools: streamed")
@pytest.mark.shows("tools: several at once")
def test_the_pieces_of_calls_join_to_the_calls(talker) -> None:
    both = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]
    whole = litellm.stream_chunk_builder(list(ask(talker, both, tools=[WEATHER], stream=True)))
    calls = whole.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Rome"]


@pytest.mark.shows("reasoning")
def test_the_reasoning_stands_beside_the_answer(thinker) -> None:
    message = ask(thinker, [{"role": "user", "content": "Which is larger, 9 or 11?"}]).choices[0].message
    assert (message.reasoning_content, message.content) == ("11 is 9 and 2 more.", "11 is larger.")


@pytest.mark.shows("reasoning, streamed")
def test_the_reasoning_is_streamed(thinker) -> None:
    chunks = ask(thinker, [{"role": "user", "content": "Which is larger, 9 or 11?"}], stream=True)
    pieces = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(getattr(piece, "reasoning_content", None) or "" for piece in pieces) == "11 is 9 and 2 more."


@pytest.mark.shows("responses API")
def test_the_responses_api(sums) -> None:
    done = litellm.responses(model=f"openai/{sums.model}", api_base=sums.v1, api_key=sums.key, input="12+34=")
    assert done.output[-1].content[0].text == "46"


@pytest.mark.shows("context overflow")
def test_a_prompt_beyond_the_context_is_litellms_own_error(sums) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(sums, [{"role": "user", "content": "1+" * 4000}])


@pytest.mark.shows("wrong key")
def test_a_wrong_key_is_an_authentication_error(sums) -> None:
    with pytest.raises(litellm.AuthenticationError):
        ask(sums, SUM, api_key="wrong")


@pytest.mark.shows("embeddings", "refused by name")
def test_embeddings_are_refused_by_name(sums) -> None:
    with pytest.raises(Exception, match="mbedding"):
        litellm.embedding(model=f"openai/{sums.model}", api_base=sums.v1, api_key=sums.key, input=["12+34="])


@pytest.mark.shows("time-out")
def test_a_request_that_is_given_up_leaves_nothing_behind(sums) -> None:
    with pytest.raises(litellm.Timeout):
        ask(sums, SUM, timeout=0.2, max_tokens=900, extra_body={"ignore_eos": True})
    assert sums.is_idle_soon()


@pytest.mark.shows("many at once")
def test_many_at_once(sums) -> None:
    questions = [[{"role": "user", "content": f"{number}+5="}] for number in range(10, 18)]
    answers = litellm.batch_completion(
        model=f"hosted_vllm/{sums.model}", api_base=sums.v1, api_key=sums.key, messages=questions, temperature=0
    )
    assert [done.choices[0].message.content for done in answers] == [str(number + 5) for number in range(10, 18)]
