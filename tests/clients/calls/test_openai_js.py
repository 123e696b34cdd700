"""OpenAI's own client for JavaScript: the calls are in javascript/openai.mjs."""

import pytest


@pytest.fixture
def call(javascript):
    return lambda name, server: javascript("openai", name, server)


@pytest.mark.shows("answer")
def test_an_answer(call, sums) -> None:
    assert call("answer", sums) == "46"


@pytest.mark.shows("streaming")
@pytest.mark.shows("usage in the stream")
def test_a_stream_with_usage(call, sums) -> None:
    streamed = call("streaming", sums)
    assert streamed["text"] == "46" and streamed["usage"]["completion_tokens"] > 0


@pytest.mark.shows("completions")
def test_a_completion(call, sums) -> None:
    assert call("completions", sums) == "46"


@pytest.mark.shows("log probabilities")
@pytest.mark.shows("several answers")
@pytest.mark.shows("stop strings")
@pytest.mark.shows("seed")
def test_sampling(call, sums) -> None:
    assert call("sampling", sums) == [["ab", 2], ["ab", 2]]


@pytest.mark.shows("JSON mode")
def test_json_mode(call, talker) -> None:
    assert call("json_mode", talker) == {"city": "Paris", "degrees": 21}


@pytest.mark.shows("JSON schema")
def test_parse_gives_an_object_of_the_schema(call, talker) -> None:
    assert call("parse", talker) == {"city": "Paris", "degrees": 21}


@pytest.mark.shows("tools: named")
def test_a_tool_can_be_named(call, sums) -> None:
    (city,) = call("named", sums)
    assert city in ("Paris", "Rome")


@pytest.mark.shows("tools: required")
def test_a_call_can_be_required(call, sums) -> None:
    assert set(call("required", sums)) <= {"Paris", "Rome"}


@pytest.mark.shows("tools: several at once")
@pytest.mark.shows("tools: streamed")
def test_the_pieces_of_calls_join_to_the_calls(call, talker) -> None:
    assert call("streamed_tools", talker) == ["Paris", "Rome"]


@pytest.mark.shows("tools: auto")
@pytest.mark.shows("tool results")
@pytest.mark.shows("agent loop")
def test_run_tools_goes_the_whole_round(call, talker) -> None:
    assert call("run_tools", talker) == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("reasoning")
@pytest.mark.shows("reasoning, streamed")
def test_the_reasoning_stands_beside_the_answer(call, thinker) -> None:
    assert call("reasoning", thinker) == ["11 is 9 and 2 more.", "11 is larger.", "11 is 9 and 2 more."]


@pytest.mark.shows("list of models")
def test_the_list_of_models(call, sums) -> None:
    assert call("models", sums) == [sums.model]


@pytest.mark.shows("responses API")
def test_the_responses_api(call, sums) -> None:
    assert call("responses", sums) == ["46", "46"]


@pytest.mark.shows("embeddings", "refused by name")
def test_embeddings_are_refused_by_name(call, sums) -> None:
    told = call("embeddings", sums)
    assert told["status"] in (400, 404, 501) and "mbedding" in told["text"]


@pytest.mark.shows("context overflow")
def test_a_prompt_beyond_the_context_has_the_code_that_clients_look_for(call, sums) -> None:
    told = call("overflow", sums)
    assert (told["name"], told["code"]) == ("BadRequestError", "context_length_exceeded")
    assert "maximum context length is" in told["text"]


@pytest.mark.shows("wrong key")
def test_a_wrong_key_is_an_authentication_error(call, sums) -> None:
    assert call("wrong_key", sums)["name"] == "AuthenticationError"


@pytest.mark.shows("unknown model")
def test_an_unknown_model_is_not_found(call, sums) -> None:
    assert call("unknown_model", sums)["name"] == "NotFoundError"


@pytest.mark.shows("time-out")
def test_a_request_that_is_given_up_leaves_nothing_behind(call, sums) -> None:
    assert call("timeout", sums)["name"] == "APIConnectionTimeoutError"
    assert sums.is_idle_soon()


@pytest.mark.shows("client gone")
def test_a_stream_that_is_closed_ends_the_request(call, sums) -> None:
    assert call("gone", sums) == "text_completion"
    assert sums.is_idle_soon()


@pytest.mark.shows("many at once")
def test_many_at_once(call, sums) -> None:
    assert call("many", sums) == [str(number + 5) for number in range(10, 18)]
