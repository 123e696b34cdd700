"""The whole way with a real model: HTTP, two processes, scheduler, forward, sampler and back."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.server.fakes import MODEL
from tests.server.running import Server, tiny_config
from tests.tiny_tokenizer import CHAT_TEMPLATE, byte_tokenizer

PROMPTS = ["hello world", "STOP", "a much longer prompt that fills more than one block of the cache", "grüße"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    byte_tokenizer(CHAT_TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with Server(model, device="cpu", dtype="float32", num_blocks=64, max_num_seqs=8) as server:
        yield server
        assert server.stop(signal.SIGINT) == 0, server.log()  # Ctrl-C ends it as well as SIGTERM does
        assert server.leftovers() == []
        assert "Traceback" not in server.log()
        assert server.log().rstrip().endswith("stopped"), "libraries complain of nothing at the end"


@pytest.fixture(scope="module")
def expected(model: Path) -> list[str]:
    """What `generate` says: greedy, 12 tokens each."""
    reference = LlamaForCausalLM.from_pretrained(model).eval()
    tokenizer = byte_tokenizer()
    texts: list[str] = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        output = reference.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)
        texts.append(tokenizer.decode(output[0, ids.shape[1] :]))
    return texts


def test_greedy_answers_are_those_of_generate(server: Server, expected: list[str]) -> None:
    answer = server.openai.completions.create(
        model=MODEL, prompt=PROMPTS, max_tokens=12, temperature=0, extra_body={"min_tokens": 12}
    )
    assert [choice.text for choice in answer.choices] == expected


def test_a_stream_says_the_same(server: Server, expected: list[str]) -> None:
    stream = server.openai.completions.create(
        model=MODEL, prompt=PROMPTS, max_tokens=12, temperature=0, stream=True, extra_body={"min_tokens": 12}
    )
    texts = [""] * len(PROMPTS)
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


def test_a_seed_repeats_an_answer_and_n_answers_differ(server: Server) -> None:
    def ask() -> list[str]:
        answer = server.openai.completions.create(model=MODEL, prompt="x", max_tokens=12, n=3, seed=5)
        return [choice.text for choice in answer.choices]

    first = ask()
    assert ask() == first and len(set(first)) == 3


def test_logprobs_belong_to_the_tokens(server: Server) -> None:
    answer = server.openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=5,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        top = [one.logprob for one in token.top_logprobs]
        assert len(top) == 3 and top == sorted(top, reverse=True)
        assert token.logprob == top[0] < 0, "greedy takes the most likely"


def test_a_shared_prefix_is_found_in_the_cache(server: Server) -> None:
    prompt = "the same long beginning of two prompts, forty or more tokens of it: "
    usage = [server.openai.completions.create(model=MODEL, prompt=prompt + end, max_tokens=1).usage for end in "ab"]
    assert usage[0].prompt_tokens_details.cached_tokens == 0
    assert usage[1].prompt_tokens_details.cached_tokens == len(prompt) // 16 * 16


UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"$ref": "#/$defs/unit"}},
            "required": ["unit"],
            "additionalProperties": False,
            "$defs": {"unit": UNIT},
        },
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_is_forced_meets_its_schema_whole_and_streamed(server: Server, choice: object) -> None:
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [WEATHER],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 0,
    }
    answer = server.openai.chat.completions.create(**asked).choices[0]
    (call,) = answer.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["unit"] in UNIT["enum"]
    assert answer.finish_reason == ("tool_calls" if choice == "required" else "stop")
    parts = [
        part
        for chunk in server.openai.chat.completions.create(**asked, stream=True)
        for part in chunk.choices[0].delta.tool_calls or ()
    ]
    assert parts[0].function.name == "weather"
    assert "".join(part.function.arguments for part in parts) == call.function.arguments
