"""What a request may cost before it is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from headway.bench.costly_bodies import BODIES
from headway.client.prompt_encoder import LONGEST_TOKENIZED
from headway.server.entrance.json_census import JsonCensus
from headway.server.errors import ApiError
from tests.server.conftest import Api
from tests.server.fakes import MAX_MODEL_LEN

LONGEST = 5  # characters of the tiny tokenizer's longest token, <eos>


def never(*args: object, **options: object) -> Any:
    raise AssertionError("this must not be called")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a" * (MAX_MODEL_LEN * LONGEST + 1)}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * (MAX_MODEL_LEN * LONGEST + 1)}]}),
        ("/tokenize", {"prompt": "a" * (LONGEST_TOKENIZED + 1)}),
    ],
)
async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    monkeypatch.setattr(api.client.tokenizer, "encode", never)
    response = await api.post(path, json=body)
    assert response.status_code == 400, response.text
    assert "characters" in response.json()["error"]["message"]


async def test_more_answers_than_the_engine_can_hold_are_a_400_that_names_both_numbers(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.client.tokenizer, "encode", never)
    for prompt, n in (([[9]] * 20_000, 16), (["1"] * 5_000, 1)):
        response = await api.post("/v1/completions", json={"prompt": prompt, "n": n, "max_tokens": 1})
        message = response.json()["error"]["message"]
        assert response.status_code == 400
        assert f"{len(prompt)} prompts x n = {n}" in message and "at most 4100" in message
    assert not api.link.sent


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "a", "stop_token_ids": [""] * 100_000}, "at most 64 token ids"),
        ({"prompt": "a", **{f"x{i}": 0 for i in range(60_000)}}, "unknown fields 'x0', "),
    ],
)
async def test_the_first_error_of_many_ends_it(
    make_api: Callable[..., Api], body: dict[str, Any], message: str
) -> None:
    response = await make_api(strict_fields=True).post("/v1/completions", json=body)
    assert response.status_code == 400 and message in response.json()["error"]["message"]


async def test_too_many_messages_are_refused(api: Api) -> None:
    many = await api.post("/v1/chat/completions", json={"messages": [{}] * 9_000})
    assert many.status_code == 400 and "at most 8192 messages" in many.json()["error"]["message"]
    more = await api.post("/v1/chat/completions", json={"messages": [{}] * 40_000})
    assert more.status_code == 413 and "lists and objects" in more.json()["error"]["message"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_the_census_counts_the_same_however_the_text_is_cut(size: int) -> None:
    text = rb'{"a\"[,": ["x\\", "\\\"{", [1, 2], {}], "b": "[[[,,"}'
    census = JsonCensus()
    for start in range(0, len(text), size):
        census.add(text[start : start + size])
    assert (census.num_containers, census.num_strings, census.num_keys) == (4, 5, 2)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"[" * 40_000, "32768 lists and objects"),
        (b'"a",' * 140_000, "131072 strings"),
        (b'"a":1,' * 70_000, "65536 keys"),
        (b"1," * 2_000_000, "1048576 values"),
    ],
)
def test_the_census_ends_at_the_first_too_many(text: bytes, what: str) -> None:
    with pytest.raises(ApiError, match=what):
        JsonCensus().add(text)


@pytest.mark.parametrize("value", [1e308, 1e-300, 0, float("nan"), float("inf")])
def test_a_repetition_penalty_has_bounds(value: float) -> None:
    from headway.errors import RequestError
    from headway.sampling import SamplingParams

    with pytest.raises(RequestError, match=r"repetition_penalty must be in \[0.001, 1000\]"):
        SamplingParams(repetition_penalty=value)


def test_a_costly_body_costs_at_most_16_bytes_a_byte_and_64_mib() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.server.costly_bodies"], capture_output=True, text=True, timeout=200
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(BODIES), done.stderr
    for size, status, growth in rows:
        assert status in (400, 413) and growth <= 16 * size + 64 * 2**20, rows
