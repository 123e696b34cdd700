"""A server with several engines, and several processes that serve one port."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from headway.client.engine_clients import EngineClients
from headway.scheduler.audit import AuditReport, Owner
from headway.server.metrics.server_metrics import FOLDER_VARIABLE
from headway.server.routes.api import create_app
from headway.wire import to_engine
from tests.server.fakes import ANSWER, MODEL, FakeLink, fake_client, settled, status


class Server:
    """The application over two fake engines."""

    def __init__(self) -> None:
        made = {str(number): fake_client(ask=_ask) for number in range(2)}
        self.links: dict[str, FakeLink] = {name: link for name, (_, link) in made.items()}
        self.engines = EngineClients.of({name: client for name, (client, _) in made.items()})
        self.app = create_app(self.engines, MODEL, admin_api=True)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def page(self) -> dict[str, float]:
        lines = (await self.http.get("/metrics")).text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def _ask(call: to_engine.EngineCall) -> AuditReport | int | None:
    match call:
        case to_engine.AuditEngine():
            return AuditReport(("a block is lost",), 1, 1, 3, 4, 5, 0, (Owner("r", "slot", 0, 3),))
        case to_engine.ResetCache():
            return 7
    return None


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    await server.http.aclose()
    await server.engines.shutdown()


async def test_requests_are_answered_and_every_engine_has_its_own_numbers(server: Server) -> None:
    for number, link in enumerate(server.links.values()):
        link.say(status(num_running=2, num_prompt_tokens=10 * number))
    await settled()
    for number in range(8):
        body = {"prompt": [number] * 3, "max_tokens": len(ANSWER)}
        assert (await server.http.post("/v1/completions", json=body)).json()["choices"][0]["text"] == ANSWER
    page = await server.page()
    given = [len(link.sent_of(to_engine.AddGroup)) for link in server.links.values()]
    assert sum(given) == 8 and min(given) > 0
    for number in range(2):
        labels = f'engine="{number}",model_name="{MODEL}"'
        assert page[f"headway:num_requests_running{{{labels}}}"] == 2
        assert page[f"vllm:prompt_tokens_total{{{labels}}}"] == 10 * number
        ended = page[
            f'headway:request_success_total{{engine="{number}",finished_reason="length",model_name="{MODEL}"}}'
        ]
        assert ended == given[number]
        assert page[f'headway:engine_sleep_state{{{labels},sleep_state="awake"}}'] == 1


async def test_no_family_is_on_the_page_twice(server: Server) -> None:
    lines = (await server.http.get("/metrics")).text.splitlines()
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) > 50


async def test_one_engine_is_enough_for_health_and_the_body_names_the_others(server: Server) -> None:
    assert (await server.http.get("/health")).content == b"{}"
    server.links["1"].end("killed")
    await settled()
    response = await server.http.get("/health")
    assert response.status_code == 200
    assert response.json() == {"unhealthy": {"1": "the engine process has ended (killed)"}}
    page = await server.page()
    assert f'headway:engine_sleep_state{{engine="1",model_name="{MODEL}",sleep_state="awake"}}' not in page
    server.links["0"].end("killed")
    await settled()
    response = await server.http.get("/health")
    assert response.status_code == 503 and "engine 0" in response.text and "engine 1" in response.text


async def test_the_operators_calls_are_for_all_engines(server: Server) -> None:
    assert (await server.http.post("/pause")).status_code == 200
    assert (await server.http.post("/resume")).status_code == 200
    assert (await server.http.post("/reset_prefix_cache")).json()["num_blocks"] == 14
    report = (await server.http.get("/debug/ownership")).json()
    assert report["problems"] == ["engine 0: a block is lost", "engine 1: a block is lost"]
    assert (report["num_slots"], report["num_blocks"], report["num_slots_used"]) == (8, 198, 2)
    for link in server.links.values():
        assert len(link.sent_of(to_engine.Call)) == 4


PROCESS = """
import os, sys
from types import SimpleNamespace
from prometheus_client import multiprocess
from headway.config import SchedulerConfig
from headway.server.metrics.loop_monitor import LONGEST_TURN
from headway.server.metrics.server_metrics import ServerMetrics
from headway.wire.to_client import Snapshot

number, *dead = map(int, sys.argv[1:])
config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64, num_blocks=100, block_size=16)
engine = SimpleNamespace(
    snapshot=Snapshot(num_running=3, num_prompt_tokens=10), config=config, num_restarts=0, num_engine_wire_errors=0,
    wire_errors=SimpleNamespace(side="client", count=number), transfers=None, kv_events=None,
    why_unhealthy=lambda: None,
)
engines = SimpleNamespace(engines={"0": engine}, config=config, retried={}, observe=lambda make: make("0"))
metrics = ServerMetrics("tiny", engines)
metrics.track_longest(*LONGEST_TURN, lambda: {("0",): float(number)})
for _ in range(number):
    metrics.answered("POST", "/v1/completions", 200, 0.01)
for pid in dead:
    multiprocess.mark_process_dead(pid)
print(os.getpid())
print(metrics.page().decode())
"""


def _process(folder: Path, *words: object) -> tuple[int, dict[str, float]]:
    """A process that serves, and ends: its id, and its page."""
    command = [sys.executable, "-c", PROCESS, *map(str, words)]
    environment = {**os.environ, FOLDER_VARIABLE: str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pid, *lines = done.stdout.splitlines()
    page = [line for line in lines if line and line[0] != "#"]
    names = [line.rsplit(" ", 1)[0] for line in page]
    assert len(names) == len(set(names)), "a sample is there twice"
    return int(pid), {name: float(value) for name, value in (line.rsplit(" ", 1) for line in page)}


def test_what_processes_count_is_summed_and_what_engines_count_is_not(tmp_path: Path) -> None:
    """The first process has died: its counters stay, its gauges go."""
    http = 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"}'
    longest = 'headway:event_loop_longest_turn_seconds{engine="0",model_name="tiny"}'
    first, page = _process(tmp_path, 5)
    assert (page[http], page[longest]) == (5, 5)
    _, page = _process(tmp_path, 3)
    assert (page[http], page[longest]) == (8, 5)
    _, page = _process(tmp_path, 2, first)
    assert (page[http], page[longest]) == (10, 3)
    assert page['headway:wire_errors_total{engine="0",model_name="tiny",side="client"}'] == 10
    assert page['headway:wire_errors_total{engine="0",model_name="tiny",side="engine"}'] == 0
    assert page['vllm:num_requests_running{engine="0",model_name="tiny"}'] == 3
    assert page['headway:prompt_tokens_total{engine="0",model_name="tiny"}'] == 10
    assert not any(name.startswith("process_") for name in page), "of which process?"
