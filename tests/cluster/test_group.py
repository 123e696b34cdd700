"""A group of servers, with small programs in the place of servers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from headway.client.restart_budget import RestartBudget
from headway.cluster import group as group_module
from headway.cluster import group_server
from headway.cluster.group import Group, GroupError, GroupStartError, Kept
from headway.cluster.group_server import GroupServer, Member
from headway.config import EngineConfig
from headway.server.settings import ServerSettings

PATIENCE = 60.0  # seconds
BEGINNING = """
import json, os, signal, sys, time
name = json.loads(sys.stdin.readline())["name"]
print("Headway serving tiny at http://127.0.0.1:1/" + name, flush=True)
"""


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Use this program as server."""
    monkeypatch.setattr(group_module, "FIRST_BACKOFF", 0.01)

    def use(text: str) -> None:
        file = tmp_path / "program.py"
        file.write_text(text)
        monkeypatch.setattr(group_server, "COMMAND", (sys.executable, str(file)))

    return use


@asynccontextmanager
async def started(*names: str, restarts: int = 0, least: int | None = None, lines: list[tuple[str, str]] | None = None):
    def tell(name: str, line: str) -> None:
        if lines is not None:
            lines.append((name, line))

    members = [Member(name, EngineConfig(), ServerSettings(port=0)) for name in names]
    group = Group([GroupServer(member, tell) for member in members], RestartBudget(restarts), least=least)
    try:
        async with asyncio.timeout(PATIENCE):
            await group.start()
            yield group
    finally:
        await group.stop()


@contextmanager
def raises(kind: type[Exception], *words: str) -> Iterator[None]:
    with pytest.raises(kind) as caught:
        yield
    assert all(word in str(caught.value) for word in words), caught.value


async def test_a_group_has_started_when_all_its_servers_take_requests(program) -> None:
    program(f"{BEGINNING}\nsys.stdin.read()")
    async with started("a", "b") as group:
        assert [server.url[-2:] for server in group.processes.values()] == ["/a", "/b"]
        pids = [server.pid for server in group.processes.values()]
    assert all(server.pid is None for server in group.processes.values())
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_server_that_does_not_start_ends_the_group_with_the_reason_of_the_server(program) -> None:
    program("import sys\nprint('headway: there is no such model', file=sys.stderr)\nsys.exit(2)")
    with raises(GroupStartError, "there is no such model"):
        async with started("a", "b", restarts=5):
            pass


async def test_a_server_that_died_is_started_again(program) -> None:
    program(f"{BEGINNING}\nsys.stdin.read()")
    async with started("a", "b", restarts=1) as group:
        server, first = group.processes["a"], group.processes["a"].pid
        server.send_signal(signal.SIGKILL)
        while server.pid in (first, None) or not server.ready.is_set():
            await asyncio.sleep(0.01)
        assert group.num_deaths == 1 and group.processes["b"].ready.is_set()


async def test_a_group_ends_when_its_restarts_are_used_up(program) -> None:
    program(f"{BEGINNING}\nsys.exit(3)")
    async with started("a", restarts=2) as group:
        with raises(GroupError, "a died (exit code 3)", "2 restarts"):
            await group.run()
        assert group.num_deaths == 3


async def test_a_group_that_may_be_smaller_goes_on_without_a_process_and_ends_without_all(program) -> None:
    program(f"{BEGINNING}\nsys.stdin.read()")
    lost: list[str] = []
    async with started("a", "b", least=1) as group:
        for name, server in group.processes.items():
            server.given_up = lambda why, name=name: lost.append(f"{name}: {why}")
        group.processes["a"].send_signal(signal.SIGKILL)
        running = asyncio.create_task(group.run())
        async with asyncio.timeout(PATIENCE):
            while not lost:
                await asyncio.sleep(0.01)
            assert group.processes["b"].ready.is_set() and not running.done()
            group.processes["b"].send_signal(signal.SIGKILL)
            with raises(GroupError, "b died (killed by SIGKILL)", "0 restarts"):
                await running
    assert lost == ["a: killed by SIGKILL"]


async def test_what_a_dead_server_leaves_behind_is_ended_before_it_is_started_again(program, tmp_path) -> None:
    """An engine that hangs does not see that its API process is gone."""
    program(
        f"""
import subprocess
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
{BEGINNING}
sys.stdin.read()
child.kill()
child.wait()
"""
    )
    async with started("a", restarts=1) as group:
        server, child = group.processes["a"], int((tmp_path / "child").read_text())
        server.send_signal(signal.SIGKILL)
        await group_death(group)
        assert not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text()


async def group_death(group: Group[GroupServer]) -> None:
    while not group.num_deaths:
        await asyncio.sleep(0.01)


async def test_every_line_of_a_server_is_passed_on_with_its_name_however_long(program) -> None:
    program(f"{BEGINNING}\nprint('x' * 200_000)\nprint('caf\\u00e9', flush=True)\nsys.stdin.read()")
    lines: list[tuple[str, str]] = []
    async with started("a", lines=lines) as _:
        while ("a", "café") not in lines:
            await asyncio.sleep(0.01)
    assert sum(len(line) for _, line in lines) == 200_004


async def test_a_server_that_does_not_end_is_killed(program, monkeypatch) -> None:
    monkeypatch.setattr(group_module, "_END_S", 0.2)
    program("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)" + BEGINNING + "time.sleep(1000)")
    async with started("a") as group:
        pid = group.processes["a"].pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


class Stuck(Kept):
    """A process that ends only when it is killed."""

    name = "stuck"
    complaint = ""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.asked = asyncio.Event()

    async def run(self) -> str:
        self.ready.set()
        await asyncio.Event().wait()
        raise AssertionError("it does not end by itself")

    def terminate(self) -> None:
        self.asked.set()


async def test_a_group_that_is_asked_again_does_not_wait_for_its_grace_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "_END_S", 0.05)
    stuck = Stuck()
    group = Group([stuck], RestartBudget(0))
    await group.start()
    stopping = asyncio.create_task(group.stop(grace=1e6))
    await asyncio.wait_for(stuck.asked.wait(), PATIENCE)
    group.terminate()
    await asyncio.wait_for(stopping, PATIENCE)
