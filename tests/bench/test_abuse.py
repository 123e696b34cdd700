"""`headway bench abuse`: the neighbour's clock, what counts as a right answer, and the exit code."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headway.bench import abuse, attacks
from headway.bench.attacks import ATTACKS, Bodies, Burst, Deaf, LeftBehind, Silence, summary
from headway.bench.costly_bodies import BODIES
from headway.bench.neighbour import Neighbour
from headway.bench.raw_http import END_OF_STREAM, Address
from headway.bench.report import Row
from headway.cli import main
from tests.bench.printed import rows_of

PATIENCE = 60.0  # seconds
PIECE = b"5\r\nhello\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Answers = Callable[[str, bytes], Awaitable[bytes] | AsyncIterator[bytes] | bytes]


def whole(status: int, body: bytes = b"{}") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def serving(answers: Answers) -> AsyncIterator[Address]:
    """A server that answers (path, body) with raw bytes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.partition("Content-Length: ")[2].partition("\r\n")[0] or 0)
                answer = answers(head.split()[1], await reader.readexactly(length))
                if isinstance(answer, AsyncIterator):
                    async for part in answer:
                        writer.write(part)
                else:
                    writer.write(answer if isinstance(answer, bytes) else await answer)
                await writer.drain()
        except (OSError, EOFError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=2**20)
    try:
        async with asyncio.timeout(PATIENCE):
            yield Address(*server.sockets[0].getsockname())
    finally:
        server.close()


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_the_neighbour_notes_the_longest_wait() -> None:
    clock, seen = Clock(), asyncio.Event()
    waits_s = iter((0.01, 0.25, 0.03))

    def answers(path: str, body: bytes) -> bytes:
        if path != "/health":
            return STREAM + PIECE
        wait_s = next(waits_s, None)
        clock.now += wait_s or 0
        if wait_s is None:
            seen.set()
        return whole(200)

    async with serving(answers) as address:
        neighbour = Neighbour(address, clock=clock)
        await neighbour.begin()
        await seen.wait()
        waits = await neighbour.end()
    assert waits.health_ms == 250 and not waits.failure


async def test_a_gap_is_within_a_stream_and_not_between_two() -> None:
    clock, begun, again = Clock(), asyncio.Event(), asyncio.Event()

    async def first() -> AsyncIterator[bytes]:
        yield STREAM + PIECE
        await begun.wait()
        clock.now += 0.5
        yield PIECE + END_OF_STREAM[2:]

    async def second() -> AsyncIterator[bytes]:
        clock.now += 7.0
        yield STREAM
        again.set()

    streams = iter((first(), second()))
    async with serving(lambda path, body: whole(200) if path == "/health" else next(streams)) as address:
        neighbour = Neighbour(address, clock=clock)
        await neighbour.begin()
        begun.set()
        await again.wait()
        waits = await neighbour.end()
    assert waits.stream_gap_ms == 500


async def test_what_is_still_waited_for_at_the_end_counts() -> None:
    clock, asked = Clock(), asyncio.Event()

    async def never() -> bytes:
        asked.set()
        await asyncio.sleep(PATIENCE)
        return b""

    async with serving(lambda path, body: never() if path == "/health" else STREAM + PIECE) as address:
        neighbour = Neighbour(address, clock=clock)
        await neighbour.begin()
        await asked.wait()
        clock.now += 3.0
        waits = await neighbour.end()
    assert (waits.health_ms, waits.stream_gap_ms) == (3000.0, 3000.0)


@pytest.mark.parametrize(
    ("health", "stream", "failure"),
    [
        (whole(503), STREAM + PIECE, "/health: 503"),
        (whole(200), whole(503, b'{"error":{"code":"queue_full"}}'), "queue_full"),
        (whole(200), STREAM + b'10\r\ndata: {"error":{}}', "error"),
    ],
)
async def test_a_neighbour_that_is_refused_says_so(health: bytes, stream: bytes, failure: str) -> None:
    async with serving(lambda path, body: health if path == "/health" else stream) as address:
        neighbour = Neighbour(address)
        await neighbour.begin()
        while not neighbour.failure:
            await asyncio.sleep(0.001)
        assert failure in (await neighbour.end()).failure


@pytest.mark.parametrize("name", [name for name in BODIES if name not in ("long prompt", "longest prompt")])
async def test_a_costly_body_is_sent_whole_and_its_refusal_is_right(name: str) -> None:
    received: list[tuple[str, int]] = []

    def answers(path: str, body: bytes) -> bytes:
        received.append((path, len(body)))
        return whole(400)

    attack = Bodies(name, 2)
    attack.prepare()
    async with serving(answers) as address:
        statuses = await attack.run(address)
    assert statuses == ["400", "400"] and attack.statuses.issuperset(statuses)
    assert received == [(BODIES[name].path, len(BODIES[name].make()))] * 2
    assert attack.sent_bytes > 2 * received[0][1] and attack.seconds > 0
    assert not {"500", "none (TimeoutError)"} & attack.statuses


@pytest.mark.parametrize(("count", "right"), [(attacks.BURST, True), (attacks.BURST - 1, False)])
async def test_a_burst_must_be_answered_whole(count: int, right: bool) -> None:
    attack = Burst()
    attack.prepare()
    async with serving(lambda path, body: whole(200, b'"finish_reason"' * count)) as address:
        assert attack.statuses.issuperset(await attack.run(address)) is right


async def test_clients_leave_and_silent_connections_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "SILENT", 3)
    monkeypatch.setattr(attacks, "LEAVE_S", 0.0)
    for attack, answers in ((LeftBehind(), 3), (Silence(), 2)):
        attack.prepare()
        async with serving(lambda path, body: whole(200)) as address:
            assert await attack.run(address) == ["200"] * answers


@pytest.mark.parametrize(
    ("end", "status"),
    [(b'{"error":{"code":"slow_reader"}}', "200 slow_reader"), (b"", "200 whole"), (b'"error"', "200 error")],
)
async def test_streams_are_read_when_the_engine_is_done_with_them(
    end: bytes, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacks, "POLL_S", 0.0)
    running = iter((49, 30))

    def answers(path: str, body: bytes) -> bytes:
        if path == "/metrics":
            return whole(200, b'x 1\nheadway:num_requests_running{engine="0"} %d.0\n' % next(running, 1))
        return STREAM + PIECE + end + END_OF_STREAM

    attack = Deaf()
    async with serving(answers) as address:
        assert await attack.run(address) == [status] * attacks.UNREAD
    assert ({status} <= attack.statuses) is (status != "200 error")
    assert next(running, None) is None


async def test_a_server_that_closes_the_connection_gives_no_answer() -> None:
    async def close() -> bytes:
        raise EOFError

    attack = Bodies("prompts x 16")
    attack.prepare()
    async with serving(lambda path, body: close()) as address:
        (status,) = await attack.run(address)
    assert status.startswith("none") and status not in attack.statuses


def test_equal_statuses_are_counted() -> None:
    assert summary(["200", "503", "200"]) == "200 x 2, 503"
    assert summary([]) == ""


_PEAK = """
import os
from headway.bench.peak_memory import PeakMemory
held = b"x" * (100 * 2**20)
del held
peak = PeakMemory(os.getpid())
print(peak.growth())
held = b"x" * (50 * 2**20)
del held
print(peak.growth())
"""


def test_the_peak_of_memory_counts_from_its_beginning() -> None:
    """In a process of its own: threads that other tests leave behind take and give memory too."""
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True, timeout=120)
    before, after = map(int, done.stdout.split())
    assert before < 20 * 2**20
    assert 40 * 2**20 < after < 90 * 2**20


@pytest.mark.parametrize(("right", "code"), [(True, 0), (False, 1)])
def test_a_wrong_answer_is_a_failure(
    right: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def measured(only: list[str]) -> Iterator[Row]:
        asked.append(only)
        yield {"abuse": "idle", "right": True}
        yield {"abuse": "burst", "right": right}

    monkeypatch.setattr(abuse, "measured", measured)
    assert main(["bench", "abuse", "--only", "burst", "--json"]) == code
    assert asked == [["burst"]] and [row["abuse"] for row in rows_of(capsys)] == ["idle", "burst"]


def test_an_unknown_abuse_is_refused_and_the_known_ones_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "abuse", "--only", "nothing"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("nothing", *ATTACKS, "shutdown"))
