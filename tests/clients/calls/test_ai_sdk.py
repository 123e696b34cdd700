"""Vercel's AI SDK: the calls are in javascript/ai_sdk.mjs."""

import pytest


@pytest.fixture
def call(javascript):
    return lambda name, server: javascript("ai_sdk", name, server)


@pytest.mark.shows("answer")
def test_an_answer(call, sums) -> None:
    assert call("answer", sums) == "46"


@pytest.mark.shows("streaming")
@pytest.mark.shows("usage in the stream")
def test_a_stream_with_usage(call, sums) -> None:
    streamed = call("streaming", sums)
    assert streamed["text"] == "46" and streamed["usage"]["outputTokens"] > 0


@pytest.mark.shows("completions")
def test_a_completion(call, sums) -> None:
    assert call("completion", sums)  # the library frames the prompt as a dialogue, which the model has not learned


@pytest.mark.shows("stop strings")
@pytest.mark.shows("seed")
def test_a_stop_string_and_a_seed(call, sums) -> None:
    assert call("sampling", sums) == "ab"


@pytest.mark.shows("JSON schema")
@pytest.mark.parametrize("way", ["object", "output"])
def test_an_object_of_the_schema(call, talker, way) -> None:
    assert call(way, talker) == {"city": "Paris", "degrees": 21}


@pytest.mark.shows("JSON schema")
def test_an_object_is_streamed(call, sums) -> None:
    assert call("stream_object", sums)["larger"] in ("9", "11")


@pytest.mark.shows("JSON mode")
def test_json_without_a_schema(call, talker) -> None:
    assert call("no_schema", talker) == {"city": "Paris", "degrees": 21}


@pytest.mark.shows("tools: required")
@pytest.mark.shows("tools: named")
@pytest.mark.parametrize("way", ["required", "named"])
def test_a_tool_can_be_required(call, sums, way) -> None:
    assert set(call(way, sums)) <= {"Paris", "Rome"}


@pytest.mark.shows("tools: auto")
@pytest.mark.shows("tool results")
@pytest.mark.shows("agent loop")
def test_steps_go_the_whole_round(call, talker) -> None:
    assert call("round", talker) == {"text": "It is sunny in Paris: 21 degrees.", "steps": 2}


@pytest.mark.shows("tools: several at once")
@pytest.mark.shows("tools: streamed")
def test_several_calls_in_a_stream(call, talker) -> None:
    streamed = call("streamed_round", talker)
    assert streamed == {"text": "It is sunny in Paris, and it rains in Rome.", "inputs": ["Paris", "Rome"]}


@pytest.mark.shows("reasoning")
@pytest.mark.shows("reasoning, streamed")
def test_the_reasoning_stands_beside_the_answer(call, thinker) -> None:
    assert call("reasoning", thinker) == ["11 is 9 and 2 more.", "11 is larger.", "11 is 9 and 2 more."]


@pytest.mark.shows("context overflow")
def test_a_prompt_beyond_the_context_is_told(call, sums) -> None:
    told = call("overflow", sums)
    assert told["api"] and told["status"] == 400 and "maximum context length is" in told["text"]


@pytest.mark.shows("wrong key")
def test_a_wrong_key_is_told(call, sums) -> None:
    told = call("wrong_key", sums)
    assert told["api"] and told["status"] == 401


@pytest.mark.shows("time-out")
def test_a_request_that_is_given_up_leaves_nothing_behind(call, sums) -> None:
    assert call("timeout", sums) is not None
    assert sums.is_idle_soon()


@pytest.mark.shows("many at once")
def test_many_at_once(call, sums) -> None:
    assert call("many", sums) == [str(number + 5) for number in range(10, 18)]
