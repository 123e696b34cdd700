"""A prompt or an answer that is longer than the context: the words and the code that client libraries look for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.server.conftest import Api
from tests.server.fakes import MAX_MODEL_LEN

LITELLM = "this model's maximum context length is"  # it looks for it in lower case; langchain looks for the code
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONG = "a" * 100_000


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": LONG}),
        (COMPLETIONS, {"prompt": ["a", LONG]}),
        (CHAT, {"messages": user(LONG)}),
        (COMPLETIONS, {"prompt": "a", "max_tokens": MAX_MODEL_LEN + 1}),
        (CHAT, {"messages": user("a"), "max_tokens": MAX_MODEL_LEN + 1}),
        (CHAT, {"messages": user("a"), "max_completion_tokens": MAX_MODEL_LEN + 1}),
    ],
)
async def test_what_the_context_cannot_hold_is_refused_in_the_words_that_clients_know(
    api: Api, path: str, body: dict[str, Any], stream: bool
) -> None:
    response = await api.post(path, json={**body, "stream": stream})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert LITELLM in error["message"].lower()
    assert f"maximum context length is {MAX_MODEL_LEN} tokens" in error["message"]
    assert not api.link.sent


@pytest.mark.parametrize("max_tokens", [MAX_MODEL_LEN, None])
async def test_as_many_tokens_as_the_context_holds_may_be_asked_for_and_the_rest_is_cut(
    make_api: Callable[..., Api], max_tokens: int | None
) -> None:
    api = make_api()
    rendered = await api.post(f"{COMPLETIONS}/render", json={"prompt": "abcd", "max_tokens": max_tokens})
    assert rendered.json()[0]["sampling_params"]["max_tokens"] == MAX_MODEL_LEN - 4
