"""langchain-openai, and langchain's agent on it."""

from typing import Literal

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

PARIS = "What is the weather in Paris?"


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


class Verdict(BaseModel):
    """Which number is larger."""

    larger: Literal["9", "11"]


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return {"Paris": "sunny, 21 degrees", "Rome": "rain, 12 degrees"}[city]


def chat(server, **options) -> ChatOpenAI:
    options = {"base_url": server.v1, "api_key": server.key, "max_retries": 0, "timeout": 60, **options}
    return ChatOpenAI(model=server.model, **options)


@pytest.mark.shows("answer")
def test_an_answer(sums) -> None:
    done = chat(sums, temperature=0).invoke("12+34=")
    assert done.content == "46" and done.usage_metadata["output_tokens"] > 0


@pytest.mark.shows("streaming")
@pytest.mark.shows("usage in the stream")
def test_a_stream_with_usage(sums) -> None:
    pieces = list(chat(sums, stream_usage=True).stream("12+34="))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert whole.content == "46" and whole.usage_metadata["output_tokens"] > 0


@pytest.mark.shows("completions")
def test_a_completion(sums) -> None:
    llm = OpenAI(model=sums.model, base_url=sums.v1, api_key=sums.key, temperature=0)
    assert llm.invoke("12+34=") == "46"


@pytest.mark.shows("log probabilities")
def test_log_probabilities(sums) -> None:
    done = chat(sums, logprobs=True, top_logprobs=2).invoke("12+34=")
    assert len(done.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2


@pytest.mark.shows("several answers")
def test_several_answers(sums) -> None:
    assert len(chat(sums, n=2, temperature=1).generate([[HumanMessage("12+34=")]]).generations[0]) == 2


@pytest.mark.shows("stop strings")
def test_a_stop_string(sums) -> None:
    assert chat(sums).invoke("copy abc7=", stop=["c"]).content == "ab"


@pytest.mark.shows("seed")
def test_a_seed_repeats_an_answer(sums) -> None:
    one, two = (chat(sums, temperature=1.5, seed=7, max_tokens=12).invoke("Hello?") for _ in range(2))
    assert one.content == two.content


@pytest.mark.shows("fields of vLLM")
def test_fields_of_vllm_go_in_extra_body(sums) -> None:
    done = chat(sums, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}).invoke("Is 9 larger?")
    assert done.content in ("yes", "no")


@pytest.mark.shows("JSON schema")
def test_with_structured_output_by_schema(talker) -> None:
    model = chat(talker, max_tokens=60).with_structured_output(Weather, method="json_schema")
    assert model.invoke("Give me the weather in Paris as JSON.") == Weather(city="Paris", degrees=21)


@pytest.mark.shows("JSON mode")
def test_with_structured_output_by_json_mode(talker) -> None:
    model = chat(talker, max_tokens=60).with_structured_output(Weather, method="json_mode")
    assert model.invoke("Give me the weather in Paris as JSON.") == Weather(city="Paris", degrees=21)


@pytest.mark.shows("tools: named")
def test_with_structured_output_by_a_named_tool(sums) -> None:
    model = chat(sums, max_tokens=600, temperature=0).with_structured_output(Verdict, method="function_calling")
    assert isinstance(model.invoke("9 11"), Verdict)


@pytest.mark.shows("tools: required")
def test_bound_tools_can_be_required(sums) -> None:
    done = chat(sums, max_tokens=600, temperature=0).bind_tools([get_weather], tool_choice="any").invoke("12+34=")
    assert done.tool_calls[0]["name"] == "get_weather" and done.tool_calls[0]["args"]["city"] in ("Paris", "Rome")


@pytest.mark.shows("tools: auto")
@pytest.mark.shows("tool results")
def test_bound_tools_and_the_answer_after_a_result(talker) -> None:
    model = chat(talker).bind_tools([get_weather])
    first = model.invoke(PARIS)
    (call,) = first.tool_calls
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage) and call["args"] == {"city": "Paris"}
    assert model.invoke([("user", PARIS), first, result]).content == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("tools: streamed")
@pytest.mark.shows("tools: several at once")
def test_the_pieces_of_calls_join_to_the_calls(talker) -> None:
    pieces = list(chat(talker).bind_tools([get_weather]).stream("What is the weather in Paris and in Rome?"))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert [call["args"]["city"] for call in whole.tool_calls] == ["Paris", "Rome"]


@pytest.mark.shows("agent loop")
def test_an_agent_goes_the_whole_round(talker) -> None:
    agent = create_agent(chat(talker), [get_weather], system_prompt="You tell the weather.")
    messages = agent.invoke({"messages": [("user", PARIS)]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[-1].content == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("responses API")
def test_the_responses_api(sums) -> None:
    assert chat(sums, use_responses_api=True).invoke("12+34=").text == "46"


@pytest.mark.shows("context overflow")
def test_a_prompt_beyond_the_context_is_langchains_own_error(sums) -> None:
    with pytest.raises(ContextOverflowError, match="maximum context length is"):
        chat(sums).invoke("1+" * 4000)


@pytest.mark.shows("embeddings", "refused by name")
def test_embeddings_are_refused_by_name(sums) -> None:
    embeddings = OpenAIEmbeddings(
        model=sums.model, base_url=sums.v1, api_key=sums.key, check_embedding_ctx_length=False, max_retries=0
    )
    with pytest.raises(openai.APIStatusError, match="mbedding"):
        embeddings.embed_query("12+34=")


@pytest.mark.shows("wrong key")
def test_a_wrong_key_is_an_authentication_error(sums) -> None:
    with pytest.raises(openai.AuthenticationError):
        chat(sums, api_key="wrong").invoke("12+34=")


@pytest.mark.shows("time-out")
def test_a_request_that_is_given_up_leaves_nothing_behind(sums) -> None:
    with pytest.raises(openai.APITimeoutError):
        chat(sums, timeout=0.2, max_tokens=900, extra_body={"ignore_eos": True}).invoke("12+34=")
    assert sums.is_idle_soon()


@pytest.mark.shows("many at once")
def test_many_at_once(sums) -> None:
    answers = chat(sums, temperature=0).batch([f"{number}+5=" for number in range(10, 18)])
    assert [done.content for done in answers] == [str(number + 5) for number in range(10, 18)]
