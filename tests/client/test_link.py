"""The client's end of the sockets to an engine process."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator

import pytest
import zmq

from headway.client.link import EngineStartError, ProcessLink
from headway.config import SchedulerConfig
from headway.scheduler.snapshot import Snapshot
from headway.wire import codec, to_client
from headway.wire.launch import output_address

READY = to_client.Ready(SchedulerConfig())
PULSE = to_client.Status(Snapshot(), False, None)


@pytest.fixture
async def link() -> AsyncIterator[ProcessLink]:
    """To a process that says nothing; the test speaks for it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys; sys.stdin.read()", stdin=asyncio.subprocess.PIPE
    )
    link = ProcessLink(process, tempfile.mkdtemp(prefix="headway-test-"))
    yield link
    await link.close(kill=True)


def say(link: ProcessLink, *messages: to_client.ToClient) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as engine:
        engine.connect(output_address(link.socket_dir, 0))
        for message in messages:
            engine.send(codec.encode(message))


async def test_a_pulse_that_overtakes_the_word_that_the_engine_is_ready_is_no_fault(link: ProcessLink) -> None:
    waiting = asyncio.create_task(link.wait_ready())
    say(link, PULSE, PULSE, READY)
    assert await asyncio.wait_for(waiting, 30) == READY


async def test_any_other_message_before_it_is_one(link: ProcessLink) -> None:
    waiting = asyncio.create_task(link.wait_ready())
    say(link, PULSE, to_client.Accepted(1))
    with pytest.raises(EngineStartError, match="Accepted"):
        await asyncio.wait_for(waiting, 30)
