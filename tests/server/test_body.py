"""The bodies of requests: bounded together, and given up when their clients leave."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headway.client.text_pool import MEDIUM
from headway.server import body
from headway.server.entrance.body_budget import SMALL, BodyBudget
from headway.server.errors import ApiError
from tests.server.conftest import Api
from tests.server.fakes import settled

PATIENCE = 60.0  # seconds
PATH = "/v1/completions"
JSON = {"Content-Type": "application/json"}
GOOD = b'{"prompt":"a","max_tokens":1}'
LARGE = GOOD + b" " * SMALL


async def received(
    app: Any, *messages: dict[str, Any], leave: asyncio.Event | None = None, path: str = PATH
) -> int | None:
    """The status of the answer to a request whose body comes in these messages. leave: set when the client leaves."""
    queue, statuses = list(messages), []

    async def receive() -> dict[str, Any]:
        if queue:
            return queue.pop(0)
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "http_version": "1.1"}
    headers = [(b"content-type", b"application/json")]
    await app({**scope, "headers": headers, "client": ("127.0.0.1", 1)}, receive, send)
    return statuses[0] if statuses else None


def part(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def test_a_large_body_shuts_no_small_body_out() -> None:
    budget = BodyBudget(max_small=2 * SMALL, max_large=4 * SMALL)
    budget.resize(0, 4 * SMALL)
    budget.resize(0, SMALL)
    budget.resize(0, SMALL)
    for before, after in ((0, 1), (SMALL, SMALL + 1)):
        with pytest.raises(ApiError, match=f"more than {2 * SMALL if after == 1 else 4 * SMALL} bytes together"):
            budget.resize(before, after)
    assert budget.held == 6 * SMALL
    budget.resize(4 * SMALL, 0)
    budget.resize(SMALL, SMALL + 1)
    budget.resize(0, SMALL)
    assert budget.held == 3 * SMALL + 1


async def test_bodies_beyond_the_joint_bound_are_told_to_come_again(api: Api) -> None:
    budget = api.app.state.service.bodies = BodyBudget(max_large=2 * len(LARGE))
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield LARGE[:-1]
        await go_on.wait()
        yield LARGE[-1:]

    async with asyncio.timeout(PATIENCE):
        first = [asyncio.ensure_future(api.post(PATH, content=slow(), headers=JSON)) for _ in range(2)]
        await settled()
        assert budget.held == 2 * (len(LARGE) - 1)
        refused = await api.post(PATH, content=LARGE, headers=JSON)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "too_many_body_bytes"
        assert (await api.post(PATH, content=GOOD, headers=JSON)).status_code == 200
        go_on.set()
        assert [(await one).status_code for one in first] == [200, 200]
    assert (await api.post(PATH, content=LARGE, headers=JSON)).status_code == 200


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([part(LARGE)], 200),
        ([part(LARGE[:9], True), part(LARGE[9:])], 200),
        ([part(b"{" * SMALL)], 413),
        ([part(LARGE, True), part(LARGE * 2)], 413),
        ([part(LARGE, True), part(LARGE)], 503),
        ([part(b"no" + LARGE)], 400),
        ([part(LARGE.replace(b"1", b"-1"))], 400),
        ([part(LARGE, True)], 408),
        ([part(LARGE, True), {"type": "http.disconnect"}], 499),
    ],
    ids=["good", "parts", "census", "length", "joint bound", "no JSON", "bad value", "late", "left"],
)
async def test_the_bytes_of_a_body_are_given_back(
    api: Api, monkeypatch: pytest.MonkeyPatch, messages: list[dict[str, Any]], status: int
) -> None:
    monkeypatch.setattr(body, "MAX_BODY", 2 * len(LARGE))
    monkeypatch.setattr(body, "BODY_SECONDS", 0.05 if status == 408 else PATIENCE)
    budget = api.app.state.service.bodies = BodyBudget(max_large=len(LARGE) + 100)
    async with asyncio.timeout(PATIENCE):
        assert await received(api.app, *messages) == status
    assert budget.held == 0


@pytest.mark.parametrize("size", [MEDIUM // 2, MEDIUM * 2])
async def test_a_body_whose_client_has_left_is_not_parsed(api: Api, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    parsed: list[int] = []
    parse = body._parse
    monkeypatch.setattr(body, "_parse", lambda data, *rest: parsed.append(len(data)) or parse(data, *rest))
    free, leave = threading.Event(), asyncio.Event()
    texts = api.client.prompts.texts
    busy = asyncio.ensure_future(texts.run(size, lambda: free.wait(PATIENCE)))
    try:
        async with asyncio.timeout(PATIENCE):
            long = json.dumps({"prompt": "a", "user": "b" * size}).encode()
            left = asyncio.ensure_future(received(api.app, part(long), leave=leave))
            await settled()
            leave.set()
            await settled()
            assert left.done() and await left == 499
            assert api.app.state.service.bodies.held == 0
            assert (await api.post(PATH, content=GOOD, headers=JSON)).status_code == 200, "what is short never waits"
            free.set()
            await busy
            await texts.run(size, lambda: None)  # after all work before it
        assert parsed == [len(GOOD)]
    finally:
        free.set()


async def test_texts_whose_clients_have_left_are_not_tokenised_and_hold_up_no_prompt(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised: list[int] = []
    encode, free = api.client.tokenizer.encode, threading.Event()

    def slow_encode(text: str, **options: Any) -> Any:
        tokenised.append(len(text))
        if len(text) > MEDIUM:
            free.wait(PATIENCE)
        return encode(text, **options)

    monkeypatch.setattr(api.client.tokenizer, "encode", slow_encode)
    leave, size = asyncio.Event(), 100_000
    long = part(json.dumps({"prompt": "a" * size}).encode())
    try:
        async with asyncio.timeout(PATIENCE):
            clients = [asyncio.ensure_future(received(api.app, long, leave=leave, path="/tokenize")) for _ in range(8)]
            while size not in tokenised:
                await asyncio.sleep(0.001)
            leave.set()
            assert await asyncio.gather(*clients) == [499] * 8
            assert (await api.post("/tokenize", json={"prompt": "b" * 4200})).status_code == 200
            assert (await api.post(PATH, content=GOOD, headers=JSON)).status_code == 200
            free.set()
            await api.client.prompts.texts.run(size, lambda: None)  # after all work before it
        assert tokenised == [size, 4200, 1]
    finally:
        free.set()
