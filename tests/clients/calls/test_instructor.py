"""instructor: objects of a class, in each of the modes for servers that speak OpenAI's API."""

from collections.abc import Iterable
from typing import Literal

import instructor
import openai
import pytest
from instructor import Mode
from instructor.core.exceptions import InstructorRetryException
from pydantic import BaseModel


class Weather(BaseModel):
    city: str
    degrees: int


class Verdict(BaseModel):
    larger: Literal["9", "11"]


def client(server, mode: Mode, key: str | None = None):
    plain = openai.OpenAI(base_url=server.v1, api_key=key or server.key, max_retries=0, timeout=60)
    return instructor.from_openai(plain, mode=mode)


def as_json() -> list[dict]:
    return [{"role": "user", "content": "Give me the weather in Paris as JSON."}]


SUM = [{"role": "user", "content": "9 11"}]


@pytest.mark.shows("JSON mode")
@pytest.mark.shows("JSON schema")
@pytest.mark.parametrize("mode", [Mode.JSON_SCHEMA, Mode.JSON])
def test_an_object_by_json(sums, mode) -> None:
    options = {"max_tokens": 300, "temperature": 0, "max_retries": 0}
    if mode is Mode.JSON:  # says the schema in a message alone: the embedded model cannot read it
        options["extra_body"] = {"structured_outputs": {"json": Verdict.model_json_schema()}, "response_format": None}
    assert isinstance(
        client(sums, mode).chat.completions.create(model=sums.model, messages=SUM, response_model=Verdict, **options),
        Verdict,
    )


@pytest.mark.shows("tools: named")
@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.TOOLS_STRICT])
def test_an_object_by_a_named_tool(sums, mode) -> None:
    done = client(sums, mode).chat.completions.create(
        model=sums.model, messages=SUM, response_model=Verdict, max_tokens=600, temperature=0, max_retries=0
    )
    assert isinstance(done, Verdict)


@pytest.mark.shows("tools: auto")
@pytest.mark.shows("tools: several at once")
def test_several_objects_by_calls_that_the_model_chooses(talker) -> None:
    class get_weather(BaseModel):
        city: str

    done = client(talker, Mode.PARALLEL_TOOLS).chat.completions.create(
        model=talker.model,
        messages=[{"role": "user", "content": "What is the weather in Paris and in Rome?"}],
        response_model=Iterable[get_weather],
        max_retries=0,
    )
    assert [call.city for call in done] == ["Paris", "Rome"]


@pytest.mark.shows("streaming")
@pytest.mark.shows("tools: streamed")
def test_a_partial_object_grows(sums) -> None:
    partial = client(sums, Mode.TOOLS).chat.completions.create_partial(
        model=sums.model, messages=SUM, response_model=Verdict, max_tokens=600, temperature=0
    )
    assert list(partial)[-1].larger in ("9", "11")


@pytest.mark.shows("answer")
def test_an_answer_beside_the_object(talker) -> None:
    weather, done = client(talker, Mode.JSON_SCHEMA).chat.completions.create_with_completion(
        model=talker.model, messages=as_json(), response_model=Weather, max_tokens=60
    )
    assert weather.model_dump() == {"city": "Paris", "degrees": 21} and done.usage.completion_tokens > 0


@pytest.mark.shows("context overflow")
def test_a_prompt_beyond_the_context_is_told(sums) -> None:
    with pytest.raises(InstructorRetryException, match="maximum context length is"):
        client(sums, Mode.TOOLS).chat.completions.create(
            model=sums.model,
            messages=[{"role": "user", "content": "1+" * 4000}],
            response_model=Verdict,
            max_retries=0,
        )


@pytest.mark.shows("wrong key")
def test_a_wrong_key_is_told(sums) -> None:
    with pytest.raises((InstructorRetryException, openai.AuthenticationError), match="401"):
        client(sums, Mode.TOOLS, key="wrong").chat.completions.create(
            model=sums.model, messages=SUM, response_model=Verdict, max_retries=0
        )
