"""What P tells D, and what D is asked to pull: vLLM's `kv_transfer_params` in requests and answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from headway.request import FinishReason, NewRequest, Transfer
from headway.scheduler.effects import Effects, RequestEnd, TokenOutputs
from headway.wire import to_client, to_engine
from tests.server.conftest import Api
from tests.server.fakes import ANSWER, MODEL, settled

MakeApi = Callable[..., Api]

LENDS: dict[str, Any] = {"do_remote_decode": True, "do_remote_prefill": False, "remote_host": None}
PULLS: dict[str, Any] = {"do_remote_decode": False, "do_remote_prefill": True, "reference": "abc", "remote_port": 7}
PATHS = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"input": "hi", "max_tokens": None},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}]},
}


async def submitted(
    api: Api, path: str = "/v1/completions", **body: Any
) -> tuple[asyncio.Task[httpx.Response], list[NewRequest]]:
    task = asyncio.create_task(api.post(path, json={"model": MODEL, "max_tokens": 1, **PATHS[path], **body}))
    while not api.link.sent_of(to_engine.AddGroup):
        await asyncio.sleep(0)
    return task, api.link.sent_of(to_engine.AddGroup)[-1].requests


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("params", "transfer"), [(LENDS, Transfer.LEND), (PULLS, Transfer.PULL), ({}, None), ({"mine": 1}, None)]
)
async def test_a_request_says_what_becomes_of_the_kv_of_its_prompt(
    make_api: MakeApi, path: str, params: dict[str, Any], transfer: Transfer | None
) -> None:
    api = make_api(silent=True)
    task, (request,) = await submitted(api, path, kv_transfer_params=params)
    assert request.transfer is transfer and request.kv_transfer_params == params
    task.cancel()


@pytest.mark.parametrize("path", PATHS)
async def test_where_the_server_finds_the_engines_itself_no_request_names_an_address(
    make_api: MakeApi, path: str
) -> None:
    """A decode engine of a Ray cluster would connect to it."""
    api = make_api(kv_from_requests=False)
    body = {"model": MODEL, "max_tokens": 1, **PATHS[path]}
    response = await api.post(path, json={**body, "kv_transfer_params": {**PULLS, "remote_host": "10.0.0.9"}})
    assert response.status_code == 400 and "reads KV from no address of a request" in response.text
    assert not api.link.sent_of(to_engine.AddGroup)
    assert (await api.post(path, json={**body, "kv_transfer_params": {}})).status_code == 200


async def test_of_several_answers_the_first_pulls_and_the_others_wait_until_it_has_begun(make_api: MakeApi) -> None:
    """They would compute a prompt that is on its way."""
    api = make_api(silent=True)
    task, (first,) = await submitted(api, n=3, max_tokens=2, kv_transfer_params=PULLS)
    assert first.transfer is Transfer.PULL and first.uid is not None
    await settled()
    assert len(api.link.sent_of(to_engine.AddGroup)) == 1
    api.link.step([first.uid], api.link.tokens[:1])
    await settled()
    _, others = api.link.sent_of(to_engine.AddGroup)
    assert [request.transfer for request in others.requests] == [None, None]
    task.cancel()


async def test_where_the_first_answer_is_over_without_a_token_the_others_go_on(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    task, (first,) = await submitted(api, n=2, kv_transfer_params=PULLS)
    assert first.uid is not None
    api.link.step([], [], [RequestEnd(first.uid, first.request_id, FinishReason.ABORT)])
    await settled()
    assert len(api.link.sent_of(to_engine.AddGroup)) == 2
    task.cancel()


async def test_a_client_that_leaves_while_the_first_answer_pulls_leaves_nothing(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    task, (first,) = await submitted(api, n=3, kv_transfer_params=PULLS)
    task.cancel()
    await settled()
    assert api.link.sent_of(to_engine.Abort)[0].uids[0] == first.uid and api.client.num_open == 0
    api.link.step([first.uid or 0], api.link.tokens[:1])
    await settled()
    assert len(api.link.sent_of(to_engine.AddGroup)) == 1


async def test_nothing_is_lent_of_several_answers(make_api: MakeApi) -> None:
    other = make_api(silent=True)
    task, requests = await submitted(other, n=3, kv_transfer_params=LENDS)
    assert [request.transfer for request in requests] == [None] * 3
    task.cancel()


async def test_of_several_prompts_none_is_moved(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    task, requests = await submitted(api, prompt=["a", "b"], kv_transfer_params=PULLS)
    assert [request.transfer for request in requests] == [None, None]
    task.cancel()


@pytest.mark.parametrize("path", PATHS)
async def test_an_answer_brings_what_d_must_be_told(make_api: MakeApi, path: str) -> None:
    api = make_api(silent=True)
    task, (request,) = await submitted(api, path, kv_transfer_params=LENDS)
    assert request.uid is not None
    tokens = TokenOutputs(np.array([request.uid]), np.array(api.link.tokens[:1], np.int32))
    end = RequestEnd(request.uid, request.request_id, FinishReason.LENGTH)
    api.link.say(to_client.Step.of(Effects(tokens=[tokens], ended=[end], handovers=[(request.uid, PULLS)])))
    response = await task
    assert response.status_code == 200 and response.json()["kv_transfer_params"] == PULLS


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_says_at_once_what_d_must_be_told(make_api: MakeApi, path: str) -> None:
    """So D reads what there is while P computes the rest."""
    api = make_api(silent=True)
    task, (request,) = await submitted(api, path, kv_transfer_params=LENDS, stream=True)
    assert request.uid is not None
    api.link.say(to_client.Lends(request.uid, PULLS))
    await settled()
    end = RequestEnd(request.uid, request.request_id, FinishReason.LENGTH)
    api.link.step([request.uid], api.link.tokens[:1], [end])
    chunks = [json.loads(line[6:]) for line in (await task).text.splitlines() if line.startswith("data: {")]
    told = [(chunk.get("response") or chunk).get("kv_transfer_params") for chunk in chunks]
    has_text = [f'"{ANSWER[0]}"' in json.dumps(chunk) for chunk in chunks]
    assert told.index(PULLS) < has_text.index(True)


async def test_a_whole_answer_does_not_say_it_before_the_kv_is_lent(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    task, (request,) = await submitted(api, kv_transfer_params=LENDS)
    assert request.uid is not None
    api.link.say(to_client.Lends(request.uid, PULLS))
    api.link.step([request.uid], api.link.tokens[:1], [RequestEnd(request.uid, "", FinishReason.LENGTH)])
    assert "kv_transfer_params" not in (await task).json()


async def test_an_answer_that_lends_nothing_brings_nothing(api: Api) -> None:
    response = await api.post("/v1/completions", json={"prompt": "hi", "kv_transfer_params": LENDS})
    assert response.status_code == 200 and "kv_transfer_params" not in response.json()
