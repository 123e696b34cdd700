"""Routers and client libraries send fields that Headway does not know."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from headway.server.fields.unknown_fields import UnknownFields
from headway.wire import to_engine
from tests.server.conftest import Api

# As vllm-router 0.1.17 writes them into every body.
OF_A_ROUTER: dict[str, Any] = {
    "no_stop_trim": False,
    "return_hidden_states": False,
    "separate_reasoning": True,
    "stream_reasoning": True,
    "include_reasoning": True,
    "continue_final_message": False,
    "echo": False,
    "skip_special_tokens": True,
    "ignore_eos": False,
}
PATHS = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
}


@pytest.mark.parametrize("path", PATHS)
async def test_fields_of_a_router_are_ignored_and_each_is_logged_once(
    api: Api, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {
        name: value
        for name, value in OF_A_ROUTER.items()
        if (path, name) != ("/v1/completions", "continue_final_message")
    }
    with caplog.at_level(logging.INFO, "headway.server.fields.unknown_fields"):
        for _ in range(2):
            response = await api.post(path, json={**PATHS[path], **fields, "max_tokens": 2})
            assert response.status_code == 200, response.text
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == len(set(logged)) >= 3 and any("'no_stop_trim'" in line for line in logged)
    assert len(api.link.sent_of(to_engine.AddGroup)) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ebnf", "root ::= 'a'"),
        ("structural_tag", "{}"),
        ("logits_processors", ["a"]),
        ("prompt_embeds", "a"),
        ("use_beam_search", True),
        ("return_hidden_states", True),
        ("length_penalty", 0.5),
    ],
)
async def test_a_field_that_would_change_the_answer_is_refused(api: Api, name: str, value: Any) -> None:
    response = await api.post("/v1/completions", json={"prompt": "hi", name: value})
    assert response.status_code == 400 and name in response.json()["error"]["message"]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("path", [*PATHS, *(f"{path}/render" for path in PATHS)])
@pytest.mark.parametrize(
    "fields",
    [
        {"bootstrap_host": "10.0.0.1", "bootstrap_port": 8998, "bootstrap_room": 2**62},  # as sglang-router 0.3.2
        {"bootstrap_host": "10.0.0.1", "bootstrap_port": None, "bootstrap_room": 0},
        {"bootstrap_room": [1, 2]},
    ],
    ids=str,
)
async def test_the_simultaneous_form_of_sglangs_router_is_refused_with_reason_and_remedy(
    make_api: Callable[..., Api], fields: dict[str, Any], path: str, strict: bool
) -> None:
    api = make_api(strict_fields=strict)
    response = await api.post(path, json={**PATHS[path.removesuffix("/render")], **fields})
    message = response.json()["error"]["message"]
    assert response.status_code == 400 and not api.link.sent_of(to_engine.AddGroup)
    for part in ("sglang-router", "bootstrap_room", "at the same time", "kv_transfer_params", "--prefill URL"):
        assert part in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bootstrap_room", None),
        ("structured_outputs", None),
        ("bad_words", []),
        ("documents", []),
        ("length_penalty", 1.0),
    ],
)
async def test_unless_its_value_asks_for_nothing(api: Api, name: str, value: Any) -> None:
    assert (await api.post("/v1/completions", json={"prompt": "hi", name: value})).status_code == 200


async def test_a_strict_server_refuses_every_field_that_it_does_not_know(make_api: Callable[..., Api]) -> None:
    response = await make_api(strict_fields=True).post("/v1/completions", json={"prompt": "hi", "no_stop_trim": False})
    assert response.status_code == 400 and response.json()["error"]["message"] == "unknown field 'no_stop_trim'"


def test_the_log_has_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    unknown = UnknownFields()
    with caplog.at_level(logging.INFO, "headway.server.fields.unknown_fields"):
        for start in range(0, 3_000, 1_000):
            left = unknown.without({f"x{i}" * 50: i for i in range(start, start + 1_000)}, frozenset())
            assert left == {}
    assert 0 < len(caplog.records) <= 256
    assert max(len(record.getMessage()) for record in caplog.records) < 200


async def test_fields_of_messages_that_other_servers_have_added_are_ignored(
    make_api: Callable[..., Api], caplog: pytest.LogCaptureFixture
) -> None:
    part = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "citations": None}
    answer = {"role": "assistant", "content": "a", "provider_specific_fields": {}, "annotations": [], "refusal": None}
    body = {"messages": [{"role": "user", "content": [part], "id": "1"}, answer, {"role": "user", "content": "b"}]}
    with caplog.at_level(logging.INFO, "headway.server.fields.unknown_fields"):
        assert (await make_api().post("/v1/chat/completions", json=body)).status_code == 200
    for name in ("messages.citations", "messages.id", "messages.provider_specific_fields"):
        assert any(f"'{name}'" in record.getMessage() for record in caplog.records)
    response = await make_api(strict_fields=True).post("/v1/chat/completions", json=body)
    assert response.status_code == 400 and "unknown field" in response.json()["error"]["message"]
