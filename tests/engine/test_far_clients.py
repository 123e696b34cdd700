"""Clients of an engine process that reach it from other machines, by an encrypted socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from headway.client.link import AttachedLink, ProcessLink
from headway.request import FinishReason
from headway.wire import to_client, to_engine
from headway.wire.uids import UID_BITS
from tests.engine.test_process import CONFIG, MODEL, SIMULATED, Ear, add

PATIENCE = 60.0  # seconds
HERE = "127.0.0.1"


@pytest.fixture
async def engine() -> AsyncIterator[tuple[ProcessLink, str]]:
    """A link to an engine that listens to other machines too, and its address for them."""
    link = await ProcessLink.open((*SIMULATED, "0.005"))
    try:
        link.launch(CONFIG, MODEL, listen=HERE)
        ready = await asyncio.wait_for(link.wait_ready(), PATIENCE)
        assert ready.address is not None
        yield link, ready.address
    finally:
        await link.close(kill=True)


async def test_a_far_client_and_the_owner_are_both_served(engine: tuple[ProcessLink, str]) -> None:
    link, address = engine
    far = AttachedLink(address, f"tcp://{HERE}:*", 5, link.pid)
    await asyncio.wait_for(far.attach(), PATIENCE)
    mine, yours = 1, 5 << UID_BITS | 1
    link.send(to_engine.AddGroup([add(mine, "a", max_tokens=3)]))
    far.send(to_engine.AddGroup([add(yours, "b", max_tokens=3)]))
    ear = Ear(far)
    await ear.until_ended(yours)
    await Ear(link).until_ended(mine)
    assert ear.ends()[yours].reason is FinishReason.LENGTH
    await far.close()


async def test_the_clock_of_a_far_client_is_not_taken_for_that_of_the_engine(engine: tuple[ProcessLink, str]) -> None:
    """A call that is too late by the engine's clock, and a request that came years ago, are served all the same."""
    link, address = engine
    far = AttachedLink(address, f"tcp://{HERE}:*", 5, link.pid)
    await asyncio.wait_for(far.attach(), PATIENCE)
    far.send(to_engine.Call(5 << UID_BITS | 9, to_engine.IsPaused(), until=-1e9))
    ear = Ear(far)
    await ear.until(to_client.Returned, 1)
    request = add(5 << UID_BITS | 1, "b", max_tokens=1)
    request.arrival_time = -1e9
    far.send(to_engine.AddGroup([request]))
    assert request.arrival_time is None
    await ear.until_ended(request.uid)
    await far.close()


async def test_a_program_that_has_the_address_without_its_key_is_not_heard(engine: tuple[ProcessLink, str]) -> None:
    link, address = engine
    stranger = AttachedLink(address.partition(" ")[0], f"tcp://{HERE}:*", 6, link.pid)
    stranger.send(to_engine.Shutdown())
    stranger.send(to_engine.Attach(6, "tcp://127.0.0.1:9"))
    far = AttachedLink(address, f"tcp://{HERE}:*", 5, link.pid)
    await asyncio.wait_for(far.attach(), PATIENCE)
    status = await anext_status(link)
    assert status.num_wire_errors == 0
    stranger.engine_has_ended("the test is over")
    for one in (stranger, far):
        await one.close()


async def anext_status(link: ProcessLink) -> to_client.Status:
    ear = Ear(link)
    await ear.until(to_client.Status, 2)
    return ear.of(to_client.Status)[-1]
