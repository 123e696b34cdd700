"""llama-index, by its model for servers that speak OpenAI's API."""

from typing import Literal

import openai
import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

PARIS = "What is the weather in Paris?"
BOTH = "What is the weather in Paris and in Rome?"


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


class Verdict(BaseModel):
    """Which number is larger."""

    larger: Literal["9", "11"]


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return {"Paris": "sunny, 21 degrees", "Rome": "rain, 12 degrees"}[city]


def model(server, **options) -> OpenAILike:
    defaults = {
        "api_base": server.v1,
        "api_key": server.key,
        "is_chat_model": True,
        "is_function_calling_model": True,
        "context_window": 1024,
        "max_retries": 0,
        "timeout": 60,
    }
    return OpenAILike(model=server.model, **{**defaults, **options})


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


@pytest.mark.shows("answer")
def test_an_answer(sums) -> None:
    assert model(sums, temperature=0).chat(user("12+34=")).message.content == "46"


@pytest.mark.shows("streaming")
def test_a_stream(sums) -> None:
    assert "".join(piece.delta for piece in model(sums).stream_chat(user("12+34="))) == "46"


@pytest.mark.shows("completions")
def test_a_completion(sums) -> None:
    assert model(sums, is_chat_model=False, temperature=0).complete("12+34=").text == "46"


@pytest.mark.shows("log probabilities")
def test_log_probabilities(sums) -> None:
    done = model(sums, logprobs=True, top_logprobs=2).chat(user("12+34="))
    assert done.logprobs[0][0].token == "4"


@pytest.mark.shows("stop strings")
@pytest.mark.shows("seed")
def test_a_stop_string_and_a_seed(sums) -> None:
    assert model(sums).chat(user("copy abc7="), stop=["c"], seed=3).message.content == "ab"


@pytest.mark.shows("JSON mode")
def test_json_mode(talker) -> None:
    question = user("Give me the weather in Paris as JSON.")
    done = model(talker, max_tokens=60).chat(question, response_format={"type": "json_object"})
    assert Weather.model_validate_json(done.message.content) == Weather(city="Paris", degrees=21)


@pytest.mark.shows("JSON schema")
def test_a_structured_model_by_schema(talker) -> None:
    structured = model(talker, max_tokens=60, should_use_structured_outputs=True).as_structured_llm(Weather)
    assert structured.chat(user("Give me the weather in Paris as JSON.")).raw == Weather(city="Paris", degrees=21)


@pytest.mark.shows("tools: required")
def test_a_structured_model_by_a_required_call(sums) -> None:
    structured = model(sums, max_tokens=600, temperature=0).as_structured_llm(Verdict)
    assert isinstance(structured.chat(user("9 11")).raw, Verdict)


@pytest.mark.shows("tools: auto")
@pytest.mark.shows("tool results")
def test_predict_and_call(talker) -> None:
    done = model(talker).predict_and_call([FunctionTool.from_defaults(get_weather)], PARIS)
    assert done.response == "sunny, 21 degrees"


@pytest.mark.shows("tools: several at once")
@pytest.mark.shows("tools: streamed")
def test_several_calls_in_a_stream(talker) -> None:
    llm = model(talker)
    tools = [FunctionTool.from_defaults(get_weather)]
    pieces = list(llm.stream_chat_with_tools(tools, BOTH, allow_parallel_tool_calls=True))
    calls = llm.get_tool_calls_from_response(pieces[-1])
    assert [call.tool_kwargs["city"] for call in calls] == ["Paris", "Rome"]


@pytest.mark.shows("agent loop")
async def test_an_agent_goes_the_whole_round(talker) -> None:
    agent = FunctionAgent(tools=[get_weather], llm=model(talker), system_prompt="You tell the weather.")
    assert str(await agent.run(PARIS)) == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("context overflow")
def test_a_prompt_beyond_the_context_is_a_bad_request(sums) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is"):
        model(sums).chat(user("1+" * 4000))


@pytest.mark.shows("wrong key")
def test_a_wrong_key_is_an_authentication_error(sums) -> None:
    with pytest.raises(openai.AuthenticationError):
        model(sums, api_key="wrong").chat(user("12+34="))


@pytest.mark.shows("many at once")
async def test_many_at_once(sums) -> None:
    import asyncio

    llm = model(sums, temperature=0)
    answers = await asyncio.gather(*(llm.achat(user(f"{number}+5=")) for number in range(10, 18)))
    assert [done.message.content for done in answers] == [str(number + 5) for number in range(10, 18)]
