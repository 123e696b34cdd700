"""The command `llm`, as its page on models that speak OpenAI's API says: by extra-openai-models.yaml."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def llm(tmp_path, sums, talker):
    """Runs the command with the servers' models under its names `sums` and `talker`."""
    models = [
        {
            "model_id": name,
            "model_name": server.model,
            "api_base": server.v1,
            "api_key_name": "headway",
            "supports_tools": True,
            "supports_schema": True,
        }
        for name, server in (("sums", sums), ("talker", talker))
    ]
    models.append({**models[0], "model_id": "completions", "completion": True})
    models.append({**models[0], "model_id": "responses", "responses": True})
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))

    def run(*words: str, key: str = sums.key) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "llm", *words, "--key", key, "--no-log"],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    return run


def said(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.shows("answer")
def test_an_answer(llm) -> None:
    assert said(llm("-m", "sums", "12+34=", "--no-stream", "-o", "temperature", "0")) == "46"


@pytest.mark.shows("streaming")
@pytest.mark.shows("usage in the stream")
def test_a_stream_with_usage(llm) -> None:
    done = llm("-m", "sums", "12+34=", "--usage")
    assert said(done) == "46" and "Token usage" in done.stderr


@pytest.mark.shows("completions")
def test_a_completion(llm) -> None:
    assert said(llm("-m", "completions", "12+34=", "-o", "temperature", "0")) == "46"


@pytest.mark.shows("responses API")
def test_the_responses_api(llm) -> None:
    assert said(llm("-m", "responses", "12+34=")) == "46"


@pytest.mark.shows("stop strings")
@pytest.mark.shows("seed")
def test_options(llm) -> None:
    assert said(llm("-m", "sums", "copy abc7=", "-o", "stop", "c", "-o", "seed", "3")) == "ab"


@pytest.mark.shows("JSON mode")
def test_json_mode(llm) -> None:
    text = said(llm("-m", "talker", "Give me the weather in Paris as JSON.", "-o", "json_object", "1"))
    assert json.loads(text) == {"city": "Paris", "degrees": 21}


@pytest.mark.shows("JSON schema")
def test_a_schema(llm) -> None:
    text = said(llm("-m", "talker", "Give me the weather in Paris as JSON.", "--schema", "city, degrees int"))
    assert json.loads(text) == {"city": "Paris", "degrees": 21}


@pytest.mark.shows("tools: auto")
@pytest.mark.shows("tool results")
@pytest.mark.shows("tools: streamed")
@pytest.mark.shows("agent loop")
@pytest.mark.parametrize("more", [[], ["--no-stream"]], ids=str)
def test_a_function_is_called_and_answered(llm, more) -> None:
    code = 'def get_weather(city: str) -> str:\n    "The weather in a city."\n    return "sunny, 21 degrees"\n'
    text = said(llm("-m", "talker", "What is the weather in Paris?", "--functions", code, *more))
    assert text == "It is sunny in Paris: 21 degrees."


@pytest.mark.shows("context overflow")
def test_a_prompt_beyond_the_context_is_told(llm) -> None:
    done = llm("-m", "sums", "1+" * 4000)
    assert done.returncode == 1 and "maximum context length is" in done.stderr


@pytest.mark.shows("wrong key")
def test_a_wrong_key_is_told(llm) -> None:
    done = llm("-m", "sums", "12+34=", key="wrong")
    assert done.returncode == 1 and "401" in done.stderr
