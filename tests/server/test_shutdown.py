"""What a shutdown of the server tells the requests that it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from headway.wire import to_engine
from tests.server.conftest import Api
from tests.server.fakes import settled

PATHS = {
    "/v1/completions": {"prompt": "abc"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "abc"}]},
}


async def end(api: Api, *, whole: bool) -> None:
    """The end of the grace time, or of the client with all that it has."""
    if whole:
        await api.client.shutdown()
    else:
        api.client.fail_open()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_that_a_shutdown_cuts_ends_with_an_event_that_says_so(
    make_api: Callable[..., Api], path: str, whole: bool
) -> None:
    api = make_api(silent=True)
    asking = asyncio.create_task(api.post(path, json=PATHS[path] | {"stream": True}))
    while not api.link.sent_of(to_engine.AddGroup):
        await asyncio.sleep(0)
    api.link.step([api.link.sent_of(to_engine.AddGroup)[0].requests[0].uid], [97])
    await settled()
    await end(api, whole=whole)
    response = await asking
    *_, error, done = [line for line in response.text.splitlines() if line]
    assert response.status_code == 200 and done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "shutting_down"
    abort = api.link.sent_of(to_engine.Abort)
    assert len(abort) == 1, "the engine computes it no longer"


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/responses", {"input": "abc"}, "response.failed"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 9}, "error"),
    ],
)
async def test_a_stream_of_events_with_names_ends_with_the_one_for_errors(
    make_api: Callable[..., Api], path: str, body: dict[str, object], kind: str
) -> None:
    api = make_api(silent=True)
    asking = asyncio.create_task(api.post(path, json=body | {"stream": True}))
    while not api.link.sent_of(to_engine.AddGroup):
        await asyncio.sleep(0)
    api.link.step([api.link.sent_of(to_engine.AddGroup)[0].requests[0].uid], [97])
    await settled()
    await end(api, whole=False)
    response = await asking
    *_, name, data = [line for line in response.text.splitlines() if line]
    assert name == f"event: {kind}" and "the server is shutting down" in data
    assert "overloaded_error" in data or "server_error" in data, "their lists of codes know no shutdown"


async def test_a_request_that_comes_too_late_for_the_engine_is_told_of_the_shutdown(api: Api) -> None:
    await api.client.shutdown()
    response = await api.post("/v1/completions", json={"prompt": "abc"})
    assert response.status_code == 503 and response.json()["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_before_the_head_of_its_answer_a_request_that_a_shutdown_ends_is_a_503(
    make_api: Callable[..., Api], stream: bool, whole: bool
) -> None:
    api = make_api(silent=True)
    asking = asyncio.create_task(api.post("/v1/completions", json={"prompt": "abc", "stream": stream}))
    while not api.link.sent_of(to_engine.AddGroup):
        await asyncio.sleep(0)
    await end(api, whole=whole)
    response = await asking
    assert response.status_code == 503 and response.json()["error"]["code"] == "shutting_down"
