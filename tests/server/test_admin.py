"""The routes for the operator: what they ask of the engine, who may use them, what errors become."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from headway.errors import EngineDeadError, QueryError, QueueFullError
from headway.scheduler.audit import AuditReport, Owner
from headway.wire import to_client, to_engine
from tests.server.conftest import Api
from tests.server.fakes import settled, status

MakeApi = Callable[..., Api]

REPORT = AuditReport(
    (), 2, 1, 5, 6, 88, 1, (Owner("a", "slot", 0, 3, 7), Owner("b", "borrower", None, 2, 8, 1.5, "p:1"))
)
ROUTES = [("POST", "/pause"), ("POST", "/resume"), ("GET", "/is_paused"), ("POST", "/reset_prefix_cache")]


class Engine:
    """Answers as an engine does, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[to_engine.EngineCall] = []
        self.paused = False

    def __call__(self, call: to_engine.EngineCall) -> Any:
        self.asked.append(call)
        match call:
            case to_engine.PauseEngine():
                self.paused = True
            case to_engine.ResumeEngine():
                self.paused = False
            case to_engine.IsPaused():
                return self.paused
            case to_engine.ResetCache():
                return 17
            case to_engine.AuditEngine():
                return REPORT
        return None


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def api(make_api: MakeApi, engine: Engine) -> Api:
    return make_api(admin_api=True, ask=engine)


def code_of(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


# -- pause, resume, reset


async def test_a_pause_and_its_end(api: Api) -> None:
    assert (await api.get("/is_paused")).json() == {"is_paused": False}
    response = await api.post("/pause")
    assert (response.status_code, response.json()) == (200, {"status": "paused"})
    assert (await api.get("/is_paused")).json() == {"is_paused": True}
    response = await api.post("/resume")
    assert (response.status_code, response.json()) == (200, {"status": "resumed"})
    assert (await api.get("/is_paused")).json() == {"is_paused": False}


@pytest.mark.parametrize(
    ("query", "call"),
    [
        ("", to_engine.PauseEngine("abort", True, 30.0)),
        ("?mode=abort&timeout=2.5", to_engine.PauseEngine("abort", True, 2.5)),
        ("?mode=preempt&reset_prefix_cache=false", to_engine.PauseEngine("preempt", False, 30.0)),
        ("?mode=keep&clear_cache=false", to_engine.PauseEngine("preempt", False, 30.0)),
        ("?clear_cache=true&reset_prefix_cache=true", to_engine.PauseEngine("abort", True, 30.0)),
    ],
)
async def test_how_to_pause_can_be_said_in_our_words_and_in_vllms(
    api: Api, engine: Engine, query: str, call: to_engine.PauseEngine
) -> None:
    assert (await api.post(f"/pause{query}")).status_code == 200
    assert engine.asked == [call]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/pause?mode=wait", ["mode", "'abort'", "'preempt'", "'wait'"]),
        ("/pause?timeout=0", ["timeout", "greater than 0"]),
        ("/pause?timeout=nan", ["timeout", "finite"]),
        ("/pause?timeout=1e9", ["timeout", "3600"]),
        ("/pause?reset_prefix_cache=maybe", ["reset_prefix_cache", "maybe"]),
        ("/pause?wait_for_inflight_requests=true", ["unknown field 'wait_for_inflight_requests'"]),
        ("/resume?x=1", ["unknown field 'x'"]),
        ("/reset_prefix_cache?timeout=-1", ["timeout"]),
        ("/reset_prefix_cache?reset_running_requests=true", ["unknown field 'reset_running_requests'"]),
    ],
)
async def test_what_is_not_known_is_a_400_that_names_it(api: Api, engine: Engine, path: str, words: list[str]) -> None:
    response = await api.post(path)
    assert response.status_code == 400
    assert all(word in response.json()["error"]["message"] for word in words), response.text
    assert not engine.asked


async def test_a_reset_tells_how_much_was_forgotten(api: Api, engine: Engine) -> None:
    response = await api.post("/reset_prefix_cache")
    assert (response.status_code, response.json()) == (200, {"num_blocks": 17, "status": "reset"})
    assert engine.asked == [to_engine.ResetCache(5.0)]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TimeoutError("a step is still in flight"), 504, "timeout"),
        (EngineDeadError("the engine stopped"), 503, "engine_dead"),
        (QueueFullError("16 calls"), 503, "queue_full"),
        (QueryError("asked of the wrong role"), 409, "wrong_role"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_what_the_engine_refuses_becomes_the_status(
    make_api: MakeApi, error: Exception, status: int, code: str
) -> None:
    def refuse(call: to_engine.EngineCall) -> None:
        raise error

    response = await make_api(admin_api=True, ask=refuse).post("/pause")
    assert (response.status_code, code_of(response)) == (status, code)
    assert response.json()["error"]["message"] == str(error)


async def test_a_fault_of_the_engine_is_a_500_that_tells_nothing_of_it(make_api: MakeApi) -> None:
    response = await make_api(admin_api=True, ask=lambda call: 1 // 0).post("/pause")
    assert (response.status_code, code_of(response)) == (500, "internal_error")


async def test_an_engine_that_dies_meanwhile_is_an_answer_too(make_api: MakeApi) -> None:
    api = make_api(admin_api=True)
    task = asyncio.create_task(api.post("/pause"))
    while not api.link.sent_of(to_engine.Call):
        await asyncio.sleep(0)
    api.link.end("killed by SIGKILL")
    for response in (await task, await api.post("/resume")):
        assert response.status_code == 503 and "SIGKILL" in response.json()["error"]["message"]


async def test_an_engine_that_does_not_answer_is_not_waited_for_for_ever(
    make_api: MakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.client.engine_calls.ANSWER_MARGIN", 0.01)
    api = make_api(admin_api=True)
    response = await api.post("/pause?timeout=0.01")
    assert (response.status_code, code_of(response)) == (504, "timeout")
    assert "has not answered within 0.02 s" in response.json()["error"]["message"]
    ask, withdrawal = api.link.sent_of(to_engine.Call)
    assert isinstance(withdrawal.call, to_engine.ResumeEngine) and ask.until < withdrawal.until
    assert "the pause is withdrawn" in response.json()["error"]["message"]
    api.link.say(to_client.Returned(ask.number))  # too late, and without harm
    api.link.ask = Engine()
    assert (await api.post("/resume")).status_code == 200
    assert api.client._calls._waiting == {}, "nothing is kept for callers that have left"


async def test_health_tells_of_a_pause(api: Api) -> None:
    for paused, body in ((True, {"paused": True}), (False, {})):
        api.link.say(status(paused=paused))
        await settled()
        response = await api.get("/health")
        assert (response.status_code, response.json()) == (200, body)


async def test_a_client_that_is_shut_down_answers_what_is_open(api: Api) -> None:
    api.link.ask = None
    asking = asyncio.create_task(api.client.audit())
    while not api.link.sent_of(to_engine.Call):
        await asyncio.sleep(0)
    await api.client.shutdown()
    with pytest.raises(EngineDeadError, match="the engine has been shut down"):
        await asking


async def test_answers_find_their_calls_in_any_order(make_api: MakeApi) -> None:
    api = make_api(admin_api=True)
    first = asyncio.create_task(api.post("/pause"))
    second = asyncio.create_task(api.post("/reset_prefix_cache"))
    while len(api.link.sent_of(to_engine.Call)) < 2:
        await asyncio.sleep(0)
    pause, reset = api.link.sent_of(to_engine.Call)
    api.link.say(to_client.Returned(reset.number, 3))
    assert (await second).json()["num_blocks"] == 3
    assert not first.done()
    api.link.say(to_client.Returned(pause.number))
    assert (await first).status_code == 200


# -- who owns what


async def test_ownership_is_the_whole_report(api: Api, engine: Engine) -> None:
    response = await api.get("/debug/ownership")
    assert response.status_code == 200
    assert response.json() == {
        "ok": True,
        "problems": [],
        "num_requests": 2,
        "num_slots": 4,
        "num_slots_used": 1,
        "num_blocks": 99,
        "num_blocks_referenced": 5,
        "num_blocks_evictable": 88,
        "num_blocks_free": 6,
        "num_leases": 1,
        "owners": [
            {"name": "a", "kind": "slot", "slot": 0, "num_blocks": 3, "uid": 7, "seconds": None, "peer": None},
            {"name": "b", "kind": "borrower", "slot": None, "num_blocks": 2, "uid": 8, "seconds": 1.5, "peer": "p:1"},
        ],
    }
    assert engine.asked == [to_engine.AuditEngine(30.0)]


async def test_ownership_out_of_order_is_a_200_as_well(make_api: MakeApi) -> None:
    report = AuditReport(("block 3 is lost",), 0, 0, 1, 98, 0, 0, ())
    response = await make_api(ask=lambda call: report).get("/debug/ownership")
    assert response.status_code == 200
    assert (response.json()["ok"], response.json()["problems"]) == (False, ["block 3 is lost"])


# -- who may


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_the_switch_the_admin_api_is_off_and_says_how_to_turn_it_on(
    make_api: MakeApi, engine: Engine, method: str, path: str
) -> None:
    response = await make_api(ask=engine).http.request(method, path)
    assert (response.status_code, code_of(response)) == (403, "admin_api_disabled")
    assert f"{method} {path} is off" in response.json()["error"]["message"]
    assert "--enable-admin-api" in response.json()["error"]["message"]
    assert not engine.asked


@pytest.mark.parametrize(
    ("peer", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("127.0.0.9", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("10.0.0.7", {}, 403),
        ("::ffff:10.0.0.7", {}, 403),
        ("testclient", {}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "10.0.0.7"}, 403),
        ("127.0.0.1", {"Forwarded": "for=10.0.0.7"}, 403),
        ("127.0.0.1", {"X-Real-IP": "10.0.0.7"}, 403),
        ("127.0.0.1", {"Via": "1.1 proxy"}, 403),
    ],
)
async def test_ownership_is_told_on_this_host_and_elsewhere_by_the_switch(
    make_api: MakeApi, engine: Engine, peer: str, headers: dict[str, str], status: int
) -> None:
    response = await make_api(ask=engine, peer=peer).http.get("/debug/ownership", headers=headers)
    assert response.status_code == status
    assert bool(engine.asked) == (status == 200)
    if status == 403:
        assert "--enable-admin-api" in response.json()["error"]["message"]
    switched = make_api(ask=engine, peer=peer, admin_api=True)
    assert (await switched.http.get("/debug/ownership", headers=headers)).status_code == 200


async def test_the_documentation_names_them_with_their_parameters(api: Api) -> None:
    paths = (await api.get("/openapi.json")).json()["paths"]
    for method, path in [*ROUTES, ("GET", "/debug/ownership")]:
        assert method.lower() in paths[path]
    names = {parameter["name"] for parameter in paths["/pause"]["post"]["parameters"]}
    assert names == {"mode", "reset_prefix_cache", "clear_cache", "timeout"}
