"""A decode engine that asks prefill engines by itself."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from headway import engine_choice
from headway.config import EngineConfig
from headway.engine_choice import OUT_SECONDS
from headway.request import FinishReason, NewRequest, Transfer
from headway.scheduler.effects import Effects, RequestEnd
from headway.server.prefill_engines import MAX_ANSWER_BYTES, MAX_TRIES, Outcome, PrefillEngines
from headway.server.serve import BAD_START, serve
from headway.server.settings import ServerSettings
from headway.wire import to_client, to_engine
from tests.server.conftest import Api
from tests.server.fakes import settled

LENT = {"do_remote_prefill": True, "remote_reference": "abc"}
LONG = list(range(100))
Params = dict[str, Any] | None


@pytest.fixture(autouse=True)
def equals_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that are equal are asked in the order of their addresses."""
    monkeypatch.setattr(engine_choice, "_rank", lambda engine, prompt: bytes([engine]))


class Engines:
    """P engines as a transport; `answers` by host: a status, or an error to raise.

    rest: what follows the first chunk of an answer. hold: P answers when it is set.
    """

    def __init__(self, *, rest: str = "data: [DONE]\n\n", **answers: int | Exception) -> None:
        self.answers = answers
        self.rest = rest
        self.lent: Any = LENT
        self.num_left = 0  # requests whose connection was closed before an answer
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.now = 0.0
        self.hold: asyncio.Event | None = None

    async def handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.host, json.loads(request.content)))
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.num_left += 1
                raise
        answer = self.answers[request.url.host]
        if isinstance(answer, Exception):
            raise answer
        if answer != 200:
            return httpx.Response(answer, json={"error": {}})
        first = json.dumps({"choices": [], "kv_transfer_params": self.lent} if self.lent else {"choices": []})
        return httpx.Response(200, text=f"data: {first}\n\n{self.rest}")

    def make(self) -> PrefillEngines:
        urls = [f"http://{host}/" for host in self.answers]
        transport = httpx.MockTransport(self.handle)
        return PrefillEngines(urls, timeout=5.0, least_tokens=10, transport=transport, clock=lambda: self.now)

    async def ask(self, prefill: PrefillEngines, prompt: list[int] = LONG, **sampling: Any) -> Params:
        """What is told; once."""
        told: list[Params] = []
        await prefill.ask(prompt, sampling, told.append)
        assert len(told) == 1
        return told[0]

    def hosts(self) -> list[str]:
        return [host for host, _ in self.asked]


async def test_it_asks_for_one_token_and_brings_what_is_lent() -> None:
    engines = Engines(a=200)
    assert await engines.ask(engines.make(), temperature=0.5, seed=1) == LENT
    ((host, body),) = engines.asked
    assert host == "a" and body["prompt"] == LONG and body["max_tokens"] == 1 and body["seed"] == 1
    assert body["stream"] is True  # P says at once how to read what it computes
    assert body["kv_transfer_params"] == {"do_remote_decode": True, "do_remote_prefill": False}


def test_a_short_prompt_is_computed_here() -> None:
    prefill = Engines(a=200).make()
    assert prefill.source([1] * 9, {}) is None and prefill.source([1] * 10, {}) is not None


@pytest.mark.parametrize(
    "failure", [302, 401, 404, 429, 500, 503, httpx.ConnectError("refused"), httpx.ReadTimeout("slow")], ids=str
)
async def test_a_failure_means_another_engine_and_the_failed_one_is_left_out_for_a_while(
    failure: int | Exception,
) -> None:
    engines = Engines(a=failure, b=200)
    prefill = engines.make()
    assert await engines.ask(prefill) == LENT and engines.hosts() == ["a", "b"] and prefill.num_failed == 1
    await engines.ask(prefill, list(range(500, 600)))
    assert engines.hosts() == ["a", "b", "b"]
    engines.now += OUT_SECONDS + 1
    await engines.ask(prefill, list(range(700, 800)))
    assert engines.hosts()[3:] == ["a", "b"]


async def test_after_a_bounded_number_of_failures_the_prompt_is_computed_here() -> None:
    engines = Engines(a=500, b=502, c=200)
    assert await engines.ask(engines.make()) is None and len(engines.asked) == MAX_TRIES


@pytest.mark.parametrize("rest", ['data: {"error": {"message": "the engine died"}}\n\n', "data: {nonsense\n\n"])
async def test_a_failure_after_p_has_taken_the_prompt_counts_and_no_other_engine_is_asked(rest: str) -> None:
    """This engine hears of it by itself, as the KV does not come."""
    engines = Engines(a=200, b=200, rest=rest)
    prefill = engines.make()
    assert await engines.ask(prefill) == LENT and engines.hosts() == ["a"] and prefill.num_failed == 1


async def test_where_p_lends_nothing_the_prompt_is_computed_here_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It may be a decode engine, or have no --kv-listen: without a word no reader of the log would know."""
    engines = Engines(a=200, b=400)
    engines.lent = None
    prefill = engines.make()
    for start in (0, 1_000, 2_000, 3_000):
        assert await engines.ask(prefill, list(range(start, start + 100))) is None
    assert {*engines.hosts()} == {"a"} and caplog.text.count("look at its --role and --kv-listen") == 1


@pytest.mark.parametrize(
    "lent",
    [{"a": 2**70}, {"a": float("nan")}, {"a": "x" * 20_000}, {"a": "\ud800"}, [1], "abc"],
    ids=["large number", "no number", "too long", "half of a character", "list", "text"],
)
async def test_parameters_that_this_engine_could_not_take_are_a_failure_of_p(lent: Any) -> None:
    """The engine would drop the message, and the request would wait for its blocks until the receive timeout."""
    engines = Engines(a=200, b=503)
    engines.lent = lent
    prefill = engines.make()
    assert await engines.ask(prefill) is None and engines.hosts() == ["a", "b"]
    assert prefill.outcomes[Outcome.FAILED] == 2


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({}, [b"data: {" + b"x" * MAX_ANSWER_BYTES]),
        ({}, [b": P is there\n\n"] * MAX_ANSWER_BYTES),
        ({"Content-Encoding": "gzip"}, [gzip.compress(b"x" * 2**20)]),
        ({}, [b'data: {"a": ' + b"[" * 100_000 + b"\n\n"]),
    ],
    ids=["long line", "many lines", "compressed", "deep"],
)
@pytest.mark.parametrize("status", [200, 400])
async def test_an_answer_of_p_takes_no_more_memory_than_one_token_needs(
    headers: dict[str, str], content: list[bytes], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, num_read = Engines(a=200), 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal num_read
        for piece in content:
            num_read += len(piece)
            yield piece

    async def handle(request: httpx.Request) -> httpx.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return httpx.Response(status, headers=headers, content=pieces())

    monkeypatch.setattr(engines, "handle", handle)
    prefill = engines.make()
    assert await engines.ask(prefill) is None and num_read <= MAX_ANSWER_BYTES + len(content[0])
    assert prefill.num_failed == (1 if status == 200 or headers or num_read > MAX_ANSWER_BYTES else 0)


async def test_a_p_that_says_nothing_is_named_with_the_limit_and_its_option(caplog: pytest.LogCaptureFixture) -> None:
    engines = Engines(a=httpx.ReadTimeout(""))
    assert await engines.ask(engines.make()) is None
    assert "http://a failed: it has said nothing for 5 s (--receive-timeout)" in caplog.text


async def test_an_answer_without_a_word_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines(a=200)

    async def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="")

    monkeypatch.setattr(engines, "handle", handle)
    prefill = engines.make()
    assert await engines.ask(prefill) is None and prefill.num_failed == 1


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_what_p_refuses_is_judged_here(status: int) -> None:
    engines = Engines(a=status, b=200)
    assert await engines.ask(engines.make()) is None and engines.hosts() == ["a"]


async def test_a_client_that_leaves_does_not_make_its_engine_a_failed_one() -> None:
    engines = Engines(a=200, b=200)
    engines.hold = asyncio.Event()
    prefill = engines.make()
    task = asyncio.create_task(prefill.ask(LONG, {}, lambda _: None))
    while not engines.asked:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    engines.hold.set()
    await engines.ask(prefill)
    assert engines.hosts() == ["a", "a"] and prefill.num_failed == 0


async def pulling(
    make_api: Callable[..., Api], engines: Engines, path: str = "/v1/completions", **body: Any
) -> tuple[Api, asyncio.Task[httpx.Response], NewRequest]:
    """A request that the engine has blocks for, and asks the source of."""
    api = make_api(prefill=engines.make(), silent=True)
    text = "a long text that is worth it"
    body |= {"prompt": text} if path == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    body |= {"input": text} if path == "/v1/responses" else {"max_tokens": 2}
    task = asyncio.create_task(api.post(path, json=body))
    while not api.link.sent_of(to_engine.AddGroup):
        await asyncio.sleep(0)
    (request,) = api.link.sent_of(to_engine.AddGroup)[0].requests
    assert (request.transfer, request.kv_transfer_params) == (Transfer.PULL, None) and not engines.asked
    api.link.say(to_client.Step.of(Effects(sourceless=[request.uid])))
    await settled()
    return api, task, request


@pytest.mark.parametrize(
    ("path", "n"),
    [("/v1/completions", 2), ("/v1/chat/completions", 2), ("/v1/responses", 1), ("/v1/messages", 1)],
)
async def test_p_is_asked_when_the_engine_has_blocks_and_the_engine_is_told_where_to_read(
    make_api: Callable[..., Api], path: str, n: int
) -> None:
    engines = Engines(a=200)
    api, task, request = await pulling(make_api, engines, path, seed=5, min_tokens=2, n=n)
    while not api.link.sent_of(to_engine.PullFrom):
        await asyncio.sleep(0)
    assert api.link.sent_of(to_engine.PullFrom) == [to_engine.PullFrom(request.uid or 0, LENT)]
    ((_, asked),) = engines.asked
    assert asked["prompt"] == request.prompt.tolist() and asked["seed"] == 5 and asked["min_tokens"] == 1
    assert "n" not in asked and "temperature" not in asked
    task.cancel()


async def test_a_client_that_leaves_takes_its_prompt_from_p(make_api: Callable[..., Api]) -> None:
    """P sees that the connection is closed."""
    engines = Engines(a=200)
    engines.hold = asyncio.Event()
    api, task, _ = await pulling(make_api, engines)
    assert len(engines.asked) == 1 and len(api.client.requests._sources) == 1
    task.cancel()
    await settled()
    assert len(api.client.requests._sources) == 0 and engines.num_left == 1
    engines.hold.set()
    await settled()
    assert not api.link.sent_of(to_engine.PullFrom)


async def test_the_end_of_a_request_ends_its_search(make_api: Callable[..., Api]) -> None:
    """The engine has computed the prompt itself meanwhile."""
    engines = Engines(a=200)
    engines.hold = asyncio.Event()
    api, task, request = await pulling(make_api, engines)
    assert request.uid is not None
    api.link.step([request.uid], api.link.tokens[:1], [RequestEnd(request.uid, "", FinishReason.LENGTH)])
    assert (await task).status_code == 200
    await settled()
    assert len(api.client.requests._sources) == 0 and engines.num_left == 1


async def test_a_search_that_fails_means_that_the_prompt_is_computed_here(
    make_api: Callable[..., Api], caplog: pytest.LogCaptureFixture
) -> None:
    engines = Engines(a=RuntimeError("a fault of ours"))
    api, task, request = await pulling(make_api, engines)
    await settled()
    assert api.link.sent_of(to_engine.PullFrom) == [to_engine.PullFrom(request.uid or 0, None)]
    assert "a fault of ours" in caplog.text
    task.cancel()


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
        ({"role": "decode", "kv_peers": "*", "kv_secret": "s" * 16}, [], "name the addresses"),
    ],
)
def test_a_server_that_could_not_pull_does_not_start(
    config: dict[str, Any], urls: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(EngineConfig(**config), ServerSettings(prefill=tuple(urls))) == BAD_START
    assert error in capsys.readouterr().err


def test_a_prefill_engine_is_named_by_its_url() -> None:
    with pytest.raises(ValueError, match=re.escape("named by its URL, http://HOST:PORT, got 'p:1'")):
        ServerSettings(prefill=("p:1",))


async def test_prefill_engines_are_asked_with_their_key() -> None:
    shown: list[str | None] = []

    async def handle(request: httpx.Request) -> httpx.Response:
        shown.append(request.headers.get("Authorization"))
        return httpx.Response(401)

    for api_key in ("secret-of-p", None):
        transport = httpx.MockTransport(handle)
        engines = PrefillEngines(["http://p"], timeout=5.0, least_tokens=1, api_key=api_key, transport=transport)
        await engines.ask(LONG, {}, lambda params: None)
        await engines.close()
    assert shown == ["Bearer secret-of-p", None]
