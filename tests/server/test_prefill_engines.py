"""A decode engine that asks prefill engines by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from headway.config import EngineConfig
from headway.request import Transfer
from headway.server.prefill_choice import OUT_SECONDS, PIECE, PrefillChoice
from headway.server.prefill_engines import MAX_TRIES, PrefillEngines
from headway.server.serve import BAD_START, serve
from headway.wire import to_engine
from tests.server.conftest import Api

LENT = {"do_remote_prefill": True, "remote_reference": "abc"}
LONG = list(range(100))


class Engines:
    """P engines as a transport; `answers` by host: a status, or an error to raise."""

    def __init__(self, **answers: int | Exception) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.now = 0.0
        self.hold: asyncio.Event | None = None

    async def handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.host, json.loads(request.content)))
        if self.hold is not None:
            await self.hold.wait()
        answer = self.answers[request.url.host]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, json={"kv_transfer_params": LENT} if answer == 200 else {"error": {}})

    def make(self) -> PrefillEngines:
        urls = [f"http://{host}/" for host in self.answers]
        transport = httpx.MockTransport(self.handle)
        return PrefillEngines(urls, timeout=5.0, least_tokens=10, transport=transport, clock=lambda: self.now)

    def hosts(self) -> list[str]:
        return [host for host, _ in self.asked]


async def test_it_asks_for_one_token_and_brings_what_is_lent() -> None:
    engines = Engines(a=200)
    assert await engines.make().ask(LONG, {"temperature": 0.5, "seed": 1}) == LENT
    ((host, body),) = engines.asked
    assert host == "a" and body["prompt"] == LONG and body["max_tokens"] == 1 and body["seed"] == 1
    assert body["kv_transfer_params"] == {"do_remote_decode": True, "do_remote_prefill": False}


async def test_a_short_prompt_is_computed_here() -> None:
    engines = Engines(a=200)
    assert await engines.make().ask([1] * 9, {}) is None and not engines.asked


@pytest.mark.parametrize("failure", [500, 503, httpx.ConnectError("refused"), httpx.ReadTimeout("slow")], ids=str)
async def test_a_failure_means_another_engine_and_the_failed_one_is_left_out_for_a_while(
    failure: int | Exception,
) -> None:
    engines = Engines(a=failure, b=200)
    prefill = engines.make()
    assert await prefill.ask(LONG, {}) == LENT and engines.hosts() == ["a", "b"] and prefill.num_failed == 1
    await prefill.ask(list(range(500, 600)), {})
    assert engines.hosts() == ["a", "b", "b"]
    engines.now += OUT_SECONDS + 1
    await prefill.ask(list(range(700, 800)), {})
    assert engines.hosts()[3:] == ["a", "b"]


async def test_after_a_bounded_number_of_failures_the_prompt_is_computed_here() -> None:
    engines = Engines(a=500, b=502, c=200)
    assert await engines.make().ask(LONG, {}) is None and len(engines.asked) == MAX_TRIES


async def test_what_p_refuses_is_judged_here() -> None:
    engines = Engines(a=400, b=200)
    assert await engines.make().ask(LONG, {}) is None and engines.hosts() == ["a"]


async def test_a_client_that_leaves_does_not_make_its_engine_a_failed_one() -> None:
    engines = Engines(a=200, b=200)
    engines.hold = asyncio.Event()
    prefill = engines.make()
    task = asyncio.create_task(prefill.ask(LONG, {}))
    while not engines.asked:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    engines.hold.set()
    await prefill.ask(LONG, {})
    assert engines.hosts() == ["a", "a"] and prefill.num_failed == 0


class TestChoice:
    def test_the_engine_with_the_least_work_is_asked(self) -> None:
        choice = PrefillChoice(3)
        choice.begin(0, range(100))
        choice.begin(1, range(50))
        assert choice.order(range(1_000, 1_100), 0.0) == [2, 1, 0]
        choice.end(0, range(100), failed=False, now=0.0)
        assert choice.order(range(1_000, 1_100), 0.0) == [0, 2, 1]

    def test_an_engine_that_has_the_beginning_is_asked_unless_it_has_too_much_to_do(self) -> None:
        choice = PrefillChoice(2)
        prompt = list(range(4 * PIECE))
        choice.begin(1, prompt)
        choice.end(1, prompt, failed=False, now=0.0)
        assert choice.order([*prompt, 1, 2], 0.0) == [1, 0]
        assert choice.order([9, *prompt], 0.0) == [0, 1]
        choice.begin(1, range(1_000, 1_000 + 5 * PIECE))
        assert choice.order([*prompt, 1, 2], 0.0) == [0, 1]

    def test_after_a_failure_nothing_is_known_of_a_cache(self) -> None:
        choice = PrefillChoice(2)
        prompt = list(range(2 * PIECE))
        choice.begin(1, prompt)
        choice.end(1, prompt, failed=True, now=0.0)
        assert choice.order(prompt, 0.0) == [0, 1] == choice.order(prompt, OUT_SECONDS + 1)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_request_of_a_client_pulls_what_p_has_computed(make_api: Callable[..., Api], path: str) -> None:
    engines = Engines(a=200)
    api = make_api(prefill=engines.make())
    text = "a long text that is worth it"
    body = {"prompt": text} if path == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    response = await api.post(path, json={**body, "max_tokens": 2, "seed": 5, "min_tokens": 2, "n": 2})
    assert response.status_code == 200
    first, second = api.link.sent_of(to_engine.AddGroup)[0].requests
    assert (first.transfer, first.kv_transfer_params) == (Transfer.PULL, LENT) and second.transfer is None
    ((_, asked),) = engines.asked
    assert asked["prompt"] == first.prompt.tolist() and asked["seed"] == 5 and asked["min_tokens"] == 1
    assert "n" not in asked and "temperature" not in asked


async def test_a_request_that_a_router_has_prepared_is_not_asked_for_again(make_api: Callable[..., Api]) -> None:
    engines = Engines(a=200)
    api = make_api(prefill=engines.make())
    await api.post(
        "/v1/completions", json={"prompt": "long enough for it", "max_tokens": 1, "kv_transfer_params": LENT}
    )
    assert not engines.asked


@pytest.mark.parametrize(
    ("config", "urls", "error"),
    [
        ({"role": "prefill", "kv_listen": "127.0.0.1:0"}, ["http://p:1"], "whose role is decode, got role prefill"),
        ({"role": "decode"}, ["http://p:1"], "prefill engines need kv_peers too"),
        ({"role": "decode", "kv_peers": "p:9"}, ["p:1"], "named by its URL, http://HOST:PORT, got 'p:1'"),
    ],
)
def test_a_server_that_could_not_pull_does_not_start(
    config: dict[str, Any], urls: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(EngineConfig(**config), prefill=urls) == BAD_START
    assert error in capsys.readouterr().err
