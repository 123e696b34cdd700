"""What a request would bring to the engine, for routers that choose an engine by the tokens of a prompt."""

from __future__ import annotations

from typing import Any

import pytest

from headway.server.routes import render
from headway.wire import to_engine
from tests.server.conftest import Api
from tests.server.fakes import MAX_MODEL_LEN, MODEL
from tests.server.test_unknown_fields import OF_A_ROUTER
from tests.tiny_tokenizer import byte_ids

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


async def rendered(api: Api, path: str, **body: Any) -> Any:
    response = await api.post(f"{path}/render", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_completion_is_a_list_and_a_conversation_is_one_in_vllms_form(api: Api) -> None:
    (completion,) = await rendered(api, COMPLETIONS, prompt="hi", request_id="a")
    chat = await rendered(api, CHAT, messages=USER, stream=True, stream_options={"include_usage": True}, priority=3)
    assert completion.pop("token_ids") == byte_ids(api.client.tokenizer, "hi")
    assert completion.pop("sampling_params").items() >= {"temperature": 0.5, "max_tokens": 16, "n": 1}.items()
    assert completion == {
        "request_id": "a",
        "model": MODEL,
        "stream": False,
        "stream_options": None,
        "cache_salt": None,
        "priority": 0,
        "features": None,
        "kv_transfer_params": None,
    }
    assert chat["request_id"].startswith("chatcmpl-") and chat["priority"] == 3
    assert chat["stream"] and chat["stream_options"] == {"include_usage": True}
    assert chat["sampling_params"]["max_tokens"] == MAX_MODEL_LEN - len(chat["token_ids"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": "grüß"}),
        (COMPLETIONS, {"prompt": ["a", "bc"]}),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}),
        (CHAT, {"messages": USER}),
        (CHAT, {"messages": [*USER, {"role": "assistant", "content": "x"}], "add_generation_prompt": False}),
    ],
    ids=str,
)
async def test_the_tokens_are_those_that_the_engine_gets(api: Api, path: str, body: dict[str, Any]) -> None:
    body = {**body, "request_id": "r"}
    found = await rendered(api, path, **body, **{name: OF_A_ROUTER[name] for name in ("no_stop_trim", "ignore_eos")})
    assert not api.link.sent_of(to_engine.AddGroup)  # nothing is generated
    assert (await api.post(path, json=body)).status_code == 200
    sent = [new for group in api.link.sent_of(to_engine.AddGroup) for new in group.requests]
    assert {one["request_id"]: one["token_ids"] for one in (found if path == COMPLETIONS else [found])} == {
        new.request_id: new.prompt.tolist() for new in sent
    }


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (COMPLETIONS, {"prompt": "a", "model": "other"}, 404, "the model 'other' does not exist"),
        (COMPLETIONS, {"prompt": ""}, 400, "the prompt is empty"),
        (COMPLETIONS, {"prompt": [999]}, 400, "token id 999"),
        (COMPLETIONS, {"prompt": [1] * MAX_MODEL_LEN}, 400, f"maximum context length is {MAX_MODEL_LEN} tokens"),
        (COMPLETIONS, {"prompt": [1] * (MAX_MODEL_LEN - 2), "min_tokens": 3}, 400, "at most 2 tokens"),
        (COMPLETIONS, {"prompt": "a" * 100_000}, 400, "it has 100000 characters"),
        (COMPLETIONS, {"prompt": ["a"] * 10_000}, 400, "an engine holds at most"),
        (COMPLETIONS, {"prompt": "a", "bootstrap_room": 7}, 400, "bootstrap_room"),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 100_000}]}, 400, "it has 100000 characters"),
        (CHAT, {"messages": []}, 400, "messages is empty"),
        (CHAT, {"messages": USER, "functions": [{}]}, 400, "functions is not supported"),
    ],
)
async def test_what_the_route_that_answers_refuses_is_refused(
    api: Api, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    response = await api.post(f"{path}/render", json=body)
    assert response.status_code == status and message in response.json()["error"]["message"], response.text
    assert api.app.state.service.bodies.held == 0


async def test_a_small_body_does_not_make_a_huge_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt repeats the sampling parameters."""
    monkeypatch.setattr(render, "MAX_BODY", 20_000)
    body: dict[str, Any] = {"prompt": ["a"] * 4, "stop": ["x" * 4_000]}
    assert len(await rendered(api, COMPLETIONS, **body)) == 4
    response = await api.post(f"{COMPLETIONS}/render", json=body | {"prompt": ["a"] * 5})
    assert response.status_code == 400 and "5 prompts repeat them; at most 20000" in response.json()["error"]["message"]


async def test_a_server_that_stops_renders_nothing(api: Api) -> None:
    api.app.state.service.draining = True
    response = await api.post(f"{COMPLETIONS}/render", json={"prompt": "a"})
    assert response.status_code == 503 and response.json()["error"]["code"] == "shutting_down"
