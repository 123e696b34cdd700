"""OpenAI's library of agents, on both of its models: chat completions and responses."""

from typing import Literal

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
PARIS = "What is the weather in Paris?"
BOTH = "What is the weather in Paris and in Rome?"
MODELS = pytest.mark.parametrize("kind", [OpenAIChatCompletionsModel, OpenAIResponsesModel])


class Weather(BaseModel):
    city: str
    degrees: int


@function_tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return {"Paris": "sunny, 21 degrees", "Rome": "rain, 12 degrees"}[city]


def agent(server, kind: type = OpenAIChatCompletionsModel, key: str | None = None, **options) -> Agent:
    client = AsyncOpenAI(base_url=server.v1, api_key=key or server.key, max_retries=0, timeout=60)
    return Agent(name="Weather", model=kind(model=server.model, openai_client=client), **options)


@pytest.mark.shows("answer")
async def test_an_answer(sums) -> None:
    settings = ModelSettings(temperature=0)
    assert (await Runner.run(agent(sums, model_settings=settings), "12+34=")).final_output == "46"


@pytest.mark.shows("streaming")
@pytest.mark.shows("usage in the stream")
async def test_a_stream(sums) -> None:
    run = Runner.run_streamed(agent(sums, model_settings=ModelSettings(include_usage=True)), "12+34=")
    pieces = []
    async for event in run.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            pieces.append(event.data.delta)
    assert "".join(pieces) == "46" == run.final_output
    assert run.context_wrapper.usage.output_tokens > 0


@pytest.mark.shows("JSON schema")
@MODELS
async def test_the_type_of_the_output(talker, kind) -> None:
    run = await Runner.run(agent(talker, kind, output_type=Weather), "Give me the weather in Paris as JSON.")
    assert run.final_output == Weather(city="Paris", degrees=21)


@pytest.mark.shows("tools: auto")
@pytest.mark.shows("tool results")
@pytest.mark.shows("agent loop")
@pytest.mark.shows("responses API")
@MODELS
async def test_an_agent_goes_the_whole_round(talker, kind) -> None:
    run = await Runner.run(agent(talker, kind, tools=[get_weather], instructions="You tell the weather."), PARIS)
    assert run.final_output == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("tools: required")
@pytest.mark.shows("tools: named")
@pytest.mark.parametrize("choice", ["required", "get_weather"])
async def test_a_tool_can_be_required(sums, choice) -> None:
    asked = agent(
        sums,
        tools=[get_weather],
        tool_use_behavior="stop_on_first_tool",
        model_settings=ModelSettings(tool_choice=choice, temperature=0, max_tokens=600),
    )
    assert (await Runner.run(asked, "12+34=")).final_output in ("sunny, 21 degrees", "rain, 12 degrees")


@pytest.mark.shows("tools: several at once")
@pytest.mark.shows("tools: streamed")
@MODELS
async def test_several_calls_in_a_stream(talker, kind) -> None:
    run = Runner.run_streamed(agent(talker, kind, tools=[get_weather]), BOTH)
    names = [event.name async for event in run.stream_events() if event.type == "run_item_stream_event"]
    assert names.count("tool_called") == 2 == names.count("tool_output")
    assert run.final_output == "It is sunny in Paris, and it rains in Rome."


@pytest.mark.shows("context overflow")
async def test_a_prompt_beyond_the_context_is_a_bad_request(sums) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is") as told:
        await Runner.run(agent(sums), "1+" * 4000)
    assert told.value.code == "context_length_exceeded"


@pytest.mark.shows("wrong key")
async def test_a_wrong_key_is_an_authentication_error(sums) -> None:
    with pytest.raises(openai.AuthenticationError):
        await Runner.run(agent(sums, key="wrong"), "12+34=")
