"""The client's end of the sockets to an engine process."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator

import pytest
import zmq

from headway.client.link import EngineStartError, ProcessLink
from headway.wire import codec, to_client
from headway.wire.launch import output_address


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


async def test_an_engine_whose_first_word_is_another_than_ready_does_not_start(link: ProcessLink) -> None:
    waiting = asyncio.create_task(link.wait_ready())
    say(link, to_client.Accepted(1))
    with pytest.raises(EngineStartError, match="Accepted"):
        await asyncio.wait_for(waiting, 30)
