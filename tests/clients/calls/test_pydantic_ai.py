"""pydantic-ai, by its model for OpenAI's chat completions."""

from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    ModelAuthenticationError,
    ModelContextWindowExceededError,
    NativeOutput,
    PromptedOutput,
    ToolOutput,
)
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

PARIS = "What is the weather in Paris?"


class Weather(BaseModel):
    city: str
    degrees: int


class Verdict(BaseModel):
    larger: Literal["9", "11"]


def model(server, key: str | None = None) -> OpenAIChatModel:
    return OpenAIChatModel(server.model, provider=OpenAIProvider(base_url=server.v1, api_key=key or server.key))


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return {"Paris": "sunny, 21 degrees", "Rome": "rain, 12 degrees"}[city]


@pytest.mark.shows("answer")
async def test_an_answer(sums) -> None:
    done = await Agent(model(sums)).run("12+34=", model_settings={"temperature": 0})
    assert done.output == "46" and done.usage.output_tokens > 0


@pytest.mark.shows("streaming")
@pytest.mark.shows("usage in the stream")
async def test_a_stream(sums) -> None:
    async with Agent(model(sums)).run_stream("12+34=") as stream:
        assert await stream.get_output() == "46"
        assert stream.usage.output_tokens > 0


@pytest.mark.shows("JSON schema")
async def test_native_output(talker) -> None:
    agent = Agent(model(talker), output_type=NativeOutput(Weather), model_settings={"max_tokens": 60})
    assert (await agent.run("Give me the weather in Paris as JSON.")).output == Weather(city="Paris", degrees=21)


@pytest.mark.shows("JSON mode")
async def test_prompted_output(talker) -> None:
    agent = Agent(model(talker), output_type=PromptedOutput(Weather), model_settings={"max_tokens": 60})
    assert (await agent.run("Give me the weather in Paris as JSON.")).output == Weather(city="Paris", degrees=21)


@pytest.mark.shows("tools: required")
async def test_the_output_as_a_required_call(sums) -> None:
    settings = {"max_tokens": 600, "temperature": 0.0}
    done = await Agent(model(sums), output_type=ToolOutput(Verdict), model_settings=settings).run("9 11")
    assert isinstance(done.output, Verdict)


@pytest.mark.shows("tools: auto")
@pytest.mark.shows("tool results")
@pytest.mark.shows("agent loop")
async def test_an_agent_goes_the_whole_round(talker) -> None:
    done = await Agent(model(talker), tools=[get_weather], instructions="You tell the weather.").run(PARIS)
    assert done.output == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("tools: several at once")
@pytest.mark.shows("tools: streamed")
async def test_several_calls_in_a_stream(talker) -> None:
    asked = []

    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather in a city."""
        asked.append(city)
        return {"Paris": "sunny, 21 degrees", "Rome": "rain, 12 degrees"}[city]

    agent = Agent(model(talker), tools=[get_weather])
    async with agent.run_stream("What is the weather in Paris and in Rome?") as stream:
        assert await stream.get_output() == "It is sunny in Paris, and it rains in Rome."
    assert sorted(asked) == ["Paris", "Rome"]


@pytest.mark.shows("reasoning")
async def test_the_reasoning_is_a_part_of_its_own(thinker) -> None:
    done = await Agent(model(thinker)).run("Which is larger, 9 or 11?")
    parts = [(part.part_kind, part.content) for part in done.new_messages()[-1].parts]
    assert parts == [("thinking", "11 is 9 and 2 more."), ("text", "11 is larger.")]


@pytest.mark.shows("reasoning, streamed")
async def test_the_reasoning_is_streamed(thinker) -> None:
    async with Agent(model(thinker)).run_stream("Which is larger, 9 or 11?") as stream:
        assert await stream.get_output() == "11 is larger."
        assert stream.response.thinking == "11 is 9 and 2 more."


@pytest.mark.shows("responses API")
async def test_an_agent_on_the_responses_api(talker) -> None:
    provider = OpenAIProvider(base_url=talker.v1, api_key=talker.key)
    agent = Agent(OpenAIResponsesModel(talker.model, provider=provider), tools=[get_weather])
    assert (await agent.run(PARIS)).output == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("messages API")
async def test_an_agent_on_the_messages_api(talker) -> None:
    provider = AnthropicProvider(base_url=talker.url, api_key=talker.key)
    agent = Agent(AnthropicModel(talker.model, provider=provider), tools=[get_weather])
    assert (await agent.run(PARIS, model_settings={"max_tokens": 100})).output == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("context overflow")
async def test_a_prompt_beyond_the_context_is_its_own_error(sums) -> None:
    with pytest.raises(ModelContextWindowExceededError, match="maximum context length is"):
        await Agent(model(sums)).run("1+" * 4000)


@pytest.mark.shows("wrong key")
async def test_a_wrong_key_is_its_own_error(sums) -> None:
    with pytest.raises(ModelAuthenticationError):
        await Agent(model(sums, key="wrong")).run("12+34=")
