"""What a client tells the KV connector arrives in the core as it was sent."""

from __future__ import annotations

from typing import Any

import pytest

from headway.errors import RequestError
from headway.kv_transfer_params import MAX_BYTES, copied
from headway.request import Request
from headway.sampling import SamplingParams
from headway.wire import to_engine
from tests.managers.driving import make, make_request
from tests.server.conftest import Api
from tests.server.fakes import MODEL

PARAMS: dict[str, Any] = {"do_remote_decode": True, "remote_host": "10.0.0.7", "block_ids": [[1, 2], []], "tp": None}
BODIES = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
}


async def requests_in_the_core(api: Api, route: str, **fields: Any) -> list[Request]:
    """What a core holds of one HTTP request, by the way of client, socket messages and door."""
    response = await api.post(route, json={"model": MODEL, **BODIES[route], **fields})
    assert response.status_code == 200, response.text
    manager = make("v2")
    for group in api.link.sent_of(to_engine.AddGroup):
        for new in group.requests:
            manager.add(manager.door.make_request(new))
    while manager._mailbox:  # a turn is bounded in time, and may leave some
        manager.drain()
    return manager._core.requests()


@pytest.mark.parametrize("route", BODIES)
async def test_they_arrive_in_the_core_with_every_answer(api: Api, route: str) -> None:
    held = await requests_in_the_core(api, route, n=2, kv_transfer_params=PARAMS)
    assert [request.kv_transfer_params for request in held] == [PARAMS, PARAMS]


@pytest.mark.parametrize("route", BODIES)
async def test_absent_means_none(api: Api, route: str) -> None:
    (request,) = await requests_in_the_core(api, route)
    assert request.kv_transfer_params is None


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ([], "kv_transfer_params: Input should be an object, got list"),
        ({"a": "x" * MAX_BYTES}, f"kv_transfer_params has {MAX_BYTES + 9} bytes of JSON; at most {MAX_BYTES}"),
        ({"a": [2**63]}, f"kv_transfer_params contains {2**63}; integers are from"),
    ],
)
async def test_what_is_too_large_is_refused_with_value_and_limit(api: Api, params: Any, says: str) -> None:
    response = await api.post("/v1/completions", json={"prompt": "hi", "kv_transfer_params": params})
    assert response.status_code == 400 and says in response.json()["error"]["message"]
    assert not api.link.sent_of(to_engine.AddGroup)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("text", "must be a mapping, got str"),
        ({"a": object()}, "cannot be written as JSON"),
        ({"a": float("nan")}, "cannot be written as JSON"),
        ({"a": "x" * MAX_BYTES}, f"at most {MAX_BYTES} are taken"),
    ],
)
def test_the_door_refuses_them_too(params: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        make_request(make("v2"), "a", [1], SamplingParams(), kv_transfer_params=params)


def test_the_caller_may_change_its_own_afterwards() -> None:
    mine: dict[str, Any] = {"blocks": [1, 2]}
    request = make_request(make("v2"), "a", [1], SamplingParams(), kv_transfer_params=mine)
    mine["blocks"].append(3)
    assert request.kv_transfer_params == {"blocks": [1, 2]}


def test_the_largest_are_taken() -> None:
    params = {"a": "x" * (MAX_BYTES - 9)}
    assert copied(params) == params
