"""Anthropic's own client, which talks the Messages API."""

from typing import Any

import anthropic
import pytest

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}}},
}
WEATHER["input_schema"]["required"] = ["city"]
GREEDY = {"temperature": 0}  # this client has no argument for it
SUM = [{"role": "user", "content": "12+34="}]
PARIS = {"role": "user", "content": "What is the weather in Paris?"}


def client(server, **options) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=server.key, **{"max_retries": 0, "timeout": 60, **options})


@pytest.mark.shows("answer")
@pytest.mark.shows("messages API")
def test_a_message(sums) -> None:
    done = client(sums).messages.create(model=sums.model, max_tokens=20, system="Add.", messages=SUM)
    assert [block.text for block in done.content] == ["46"] and done.stop_reason == "end_turn"
    assert done.usage.input_tokens > 0 and done.usage.output_tokens > 0


@pytest.mark.shows("streaming")
def test_the_pieces_of_a_stream_are_the_message(sums) -> None:
    with client(sums).messages.stream(model=sums.model, max_tokens=20, messages=SUM) as stream:
        text = "".join(stream.text_stream)
    assert text == "46" == stream.get_final_text()


@pytest.mark.shows("usage in the stream")
def test_the_message_of_a_stream_has_its_usage(sums) -> None:
    with client(sums).messages.stream(model=sums.model, max_tokens=20, messages=SUM) as stream:
        assert stream.get_final_message().usage.output_tokens > 0


@pytest.mark.shows("stop strings")
def test_a_stop_sequence_is_named(sums) -> None:
    ask = [{"role": "user", "content": "copy abc7="}]
    done = client(sums).messages.create(model=sums.model, max_tokens=20, messages=ask, stop_sequences=["c"])
    assert (done.content[0].text, done.stop_reason, done.stop_sequence) == ("ab", "stop_sequence", "c")


@pytest.mark.shows("tools: auto")
def test_the_model_chooses_to_use_a_tool(talker) -> None:
    done = client(talker).messages.create(model=talker.model, max_tokens=100, messages=[PARIS], tools=[WEATHER])
    (use,) = [block for block in done.content if block.type == "tool_use"]
    assert done.stop_reason == "tool_use" and (use.name, use.input) == ("get_weather", {"city": "Paris"})


@pytest.mark.shows("tools: required")
@pytest.mark.shows("tools: named")
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}], ids=str)
def test_a_tool_can_be_required(sums, choice) -> None:
    done = client(sums).messages.create(
        model=sums.model, max_tokens=600, messages=SUM, tools=[WEATHER], tool_choice=choice
    )
    use = next(block for block in done.content if block.type == "tool_use")
    assert use.input["city"] in ("Paris", "Rome")


@pytest.mark.shows("tools: several at once")
@pytest.mark.shows("tools: streamed")
def test_uses_of_tools_are_streamed(talker) -> None:
    ask = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]
    with client(talker).messages.stream(model=talker.model, max_tokens=100, messages=ask, tools=[WEATHER]) as stream:
        done = stream.get_final_message()
    assert [block.input for block in done.content if block.type == "tool_use"] == [{"city": "Paris"}, {"city": "Rome"}]


@pytest.mark.shows("tool results")
def test_the_message_after_the_results_of_tools(talker) -> None:
    messages = client(talker).messages
    first = messages.create(model=talker.model, max_tokens=100, messages=[PARIS], tools=[WEATHER])
    (use,) = [block for block in first.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny, 21 degrees"}
    round_trip = [PARIS, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    done = messages.create(model=talker.model, max_tokens=100, messages=round_trip, tools=[WEATHER])
    assert done.content[0].text == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("agent loop")
def test_the_runner_of_tools_goes_the_whole_round(talker) -> None:
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather in a city.

        Args:
            city: Its name.
        """
        return "sunny, 21 degrees" if city == "Paris" else "unknown"

    runner = client(talker).beta.messages.tool_runner(
        model=talker.model, max_tokens=100, messages=[PARIS], tools=[get_weather]
    )
    assert runner.until_done().content[0].text == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("reasoning")
def test_the_reasoning_is_a_block_of_its_own(thinker) -> None:
    ask = [{"role": "user", "content": "Which is larger, 9 or 11?"}]
    done = client(thinker).messages.create(model=thinker.model, max_tokens=100, messages=ask)
    assert [(block.type, getattr(block, "thinking", None) or block.text) for block in done.content] == [
        ("thinking", "11 is 9 and 2 more."),
        ("text", "11 is larger."),
    ]


@pytest.mark.shows("count of tokens")
def test_tokens_are_counted(sums) -> None:
    counted = client(sums).messages.count_tokens(model=sums.model, messages=SUM)
    done = client(sums).messages.create(model=sums.model, max_tokens=1, messages=SUM)
    assert counted.input_tokens == done.usage.input_tokens


@pytest.mark.shows("context overflow")
def test_a_prompt_beyond_the_context_is_a_bad_request(sums) -> None:
    with pytest.raises(anthropic.BadRequestError, match="maximum context length is") as told:
        client(sums).messages.create(
            model=sums.model, max_tokens=20, messages=[{"role": "user", "content": "1+" * 4000}]
        )
    assert told.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.shows("wrong key")
def test_a_wrong_key_is_an_authentication_error(sums) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        client(sums).with_options(api_key="wrong").messages.create(model=sums.model, max_tokens=20, messages=SUM)


@pytest.mark.shows("unknown model")
def test_an_unknown_model_is_not_found(sums) -> None:
    with pytest.raises(anthropic.NotFoundError, match="claude"):
        client(sums).messages.create(model="claude-opus", max_tokens=20, messages=SUM)


@pytest.mark.shows("time-out")
def test_a_message_that_is_given_up_leaves_nothing_behind(sums) -> None:
    with pytest.raises(anthropic.APITimeoutError):
        client(sums, timeout=0.2).messages.create(
            model=sums.model, max_tokens=900, messages=SUM, extra_body={"ignore_eos": True}
        )
    assert sums.is_idle_soon()


@pytest.mark.shows("client gone")
def test_a_stream_that_is_closed_ends_the_request(sums) -> None:
    ask = {"model": sums.model, "max_tokens": 900, "messages": SUM, "extra_body": {"ignore_eos": True}}
    with client(sums).messages.create(**ask, stream=True) as stream:
        next(iter(stream))
    assert sums.is_idle_soon()


@pytest.mark.shows("many at once")
async def test_many_at_once(sums) -> None:
    import asyncio

    ask = anthropic.AsyncAnthropic(base_url=sums.url, api_key=sums.key).messages
    questions = [[{"role": "user", "content": f"{number}+5="}] for number in range(10, 18)]
    answers = await asyncio.gather(
        *(ask.create(model=sums.model, max_tokens=20, messages=question, extra_body=GREEDY) for question in questions)
    )
    assert [done.content[0].text for done in answers] == [str(number + 5) for number in range(10, 18)]


@pytest.mark.shows("files and batches", "refused by name")
def test_batches_are_refused_by_name(sums) -> None:
    with pytest.raises(anthropic.NotFoundError, match="one by one"):
        client(sums).messages.batches.list()
