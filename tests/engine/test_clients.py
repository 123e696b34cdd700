"""Clients of one engine process that come and go. The process that started the engine is client 0."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from headway.client.link import AttachedLink, EngineStartError, ProcessLink
from headway.request import FinishReason
from headway.wire import to_client, to_engine
from headway.wire.launch import input_address, output_address
from headway.wire.uids import UID_BITS
from tests.engine.test_process import CONFIG, MODEL, SIMULATED, Ear, add, start

PATIENCE = 60.0  # seconds
LONG = 120  # tokens, of 0.1 s each; a request of so many does not end by itself while a test looks on


@pytest.fixture
async def link() -> AsyncIterator[ProcessLink]:
    link = await start(step_seconds=0.1)
    yield link
    await link.close()


def a_client(link: ProcessLink, number: int) -> AttachedLink:
    folder = link.socket_dir
    return AttachedLink(input_address(folder), output_address(folder, number), number, link.pid)


async def attached(link: ProcessLink, number: int) -> AttachedLink:
    client = a_client(link, number)
    await asyncio.wait_for(client.attach(), PATIENCE)
    return client


def uid(client: int, counter: int = 1) -> int:
    return client << UID_BITS | counter


def tokens_of(ear: Ear) -> set[int]:
    return {uid for effects in ear.effects for out in effects.tokens for uid in out.uids.tolist()}


async def until_pulse(ear: Ear, holds: Callable[[to_client.Status], bool]) -> to_client.Status:
    async with asyncio.timeout(PATIENCE):
        while True:
            message = await ear.next()
            if isinstance(message, to_client.Status) and holds(message):
                return message


async def test_each_client_hears_of_its_own_requests_alone(link: ProcessLink) -> None:
    first, second = Ear(link), await attached(link, 1)
    link.send(to_engine.AddGroup([add(uid(0), "a", max_tokens=10)]))
    second.send(to_engine.AddGroup([add(uid(1), "b", max_tokens=10)]))
    second.send(to_engine.AddGroup([add(uid(1, 2), "b")]))
    second.send(to_engine.Call(uid(1), to_engine.IsPaused()))
    other = Ear(second)
    while not (uid(1) in other.ends() and other.of(to_client.Refused) and other.of(to_client.Returned)):
        await other.next()
    await first.until_ended(uid(0))
    assert tokens_of(first) == {uid(0)} and tokens_of(other) == {uid(1)}
    assert [one.uid for one in other.of(to_client.Refused)] == [uid(1, 2)]
    assert not first.of(to_client.Refused) and not first.of(to_client.Returned)
    await second.close()


async def test_a_client_that_comes_late_hears_ready_with_all_numbers_first_and_then_pulses(link: ProcessLink) -> None:
    first = Ear(link)
    link.send(to_engine.AddGroup([add(uid(0), "a", max_tokens=2)]))
    await until_pulse(first, lambda pulse: pulse.snapshot.num_requests_added == 1)
    late = a_client(link, 7)
    late.send(to_engine.Attach(7, output_address(link.socket_dir, 7)))
    ear = Ear(late)
    await ear.until(to_client.Status, 2)
    ready, *pulses = ear.heard
    assert isinstance(ready, to_client.Ready) and ready.config.max_model_len == 128
    assert ready.pulse is not None and ready.pulse.snapshot.num_requests_added == 1
    assert {type(pulse) for pulse in pulses} == {to_client.Status}
    await late.close()


async def test_a_client_that_goes_takes_its_requests_along_and_no_other(link: ProcessLink) -> None:
    first, second = Ear(link), await attached(link, 1)
    link.send(to_engine.AddGroup([add(uid(0), "a", max_tokens=LONG)]))
    second.send(to_engine.AddGroup([add(uid(1, number), f"b{number}", max_tokens=LONG) for number in range(3)]))
    await until_pulse(first, lambda pulse: pulse.snapshot.num_running == 4)
    await second.close()
    pulse = await until_pulse(first, lambda pulse: pulse.snapshot.num_requests_ended == 3)
    assert pulse.snapshot.num_generation_tokens < 3 * LONG
    assert uid(0) not in first.ends()
    link.send(to_engine.Finish([uid(0)]))
    assert (await first.until_ended(uid(0)))[uid(0)].reason is FinishReason.STOP
    assert tokens_of(first) <= {uid(0)}, "the end may come before the first token"


async def test_a_client_that_is_killed_is_told_of_by_another(link: ProcessLink) -> None:
    """Its socket is there, and is read no more: what was on its way is dropped."""
    first, dead = Ear(link), await attached(link, 1)
    dead.send(to_engine.AddGroup([add(uid(1), "b", max_tokens=LONG)]))
    await until_pulse(first, lambda pulse: pulse.snapshot.num_running == 1)
    link.send(to_engine.Detach(1))
    pulse = await until_pulse(first, lambda pulse: pulse.snapshot.num_requests_ended == 1)
    assert pulse.snapshot.num_generation_tokens < LONG
    link.send(to_engine.AddGroup([add(uid(0), "b")]))  # the id is free again
    await first.until_ended(uid(0))
    dead.engine_has_ended("as far as it knows")
    await dead.close()


async def test_what_comes_from_a_client_that_is_gone_is_dropped_and_counted(link: ProcessLink) -> None:
    first, dead = Ear(link), await attached(link, 1)
    link.send(to_engine.Detach(1))
    link.send(to_engine.Detach(1))  # that is no error
    await until_pulse(first, lambda pulse: pulse.num_wire_errors == 0)
    late = [
        to_engine.AddGroup([add(uid(1), "b")]),
        to_engine.Abort([uid(1)]),
        to_engine.Call(uid(1), to_engine.PauseEngine("abort", True, 1.0)),
    ]
    for message in late:
        link.send(message)
    pulse = await until_pulse(first, lambda pulse: pulse.num_wire_errors == len(late))
    assert pulse.snapshot.num_requests_added == 0 and not pulse.snapshot.paused
    dead.engine_has_ended("as far as it knows")
    await dead.close()


async def test_a_number_comes_once_also_if_word_of_its_end_was_first(link: ProcessLink) -> None:
    """A process that was killed may have sent that it comes, and the engine reads that after its parent's word."""
    ear = Ear(link)
    link.send(to_engine.Detach(3))
    comers = [
        to_engine.Attach(3, output_address(link.socket_dir, 3)),
        to_engine.Attach(4, output_address(link.socket_dir, 4)),
        to_engine.Attach(4, output_address(link.socket_dir, 4)),
    ]
    for message in comers:
        link.send(message)
    await until_pulse(ear, lambda pulse: pulse.num_wire_errors == 2)


async def test_a_client_waits_for_an_engine_that_is_still_loading() -> None:
    link = await ProcessLink.open((*SIMULATED, "0.01"))
    early = a_client(link, 1)
    ready = asyncio.create_task(early.attach())
    await asyncio.sleep(0)
    link.launch(CONFIG, MODEL)
    assert await asyncio.wait_for(ready, PATIENCE) == await asyncio.wait_for(link.wait_ready(), PATIENCE)
    await early.close()
    await link.close()


async def test_the_owner_says_that_the_engine_has_ended(link: ProcessLink) -> None:
    client = await attached(link, 1)
    ended = asyncio.create_task(client.ended())
    client.engine_has_ended("killed by SIGKILL")
    client.engine_has_ended("what is said later")
    assert await asyncio.wait_for(ended, PATIENCE) == "killed by SIGKILL"
    await client.close()
    await client.close()
    client.send(to_engine.Abort([uid(1)]))  # there is no engine, and no error


async def test_an_engine_that_ends_while_it_loads_is_an_error_of_the_client_that_comes(link: ProcessLink) -> None:
    client = AttachedLink(f"ipc://{link.socket_dir}/none", output_address(link.socket_dir, 2), 2, 1)
    coming = asyncio.create_task(client.attach())
    client.engine_has_ended("exit status 2")
    with pytest.raises(EngineStartError, match="exit status 2"):
        await asyncio.wait_for(coming, PATIENCE)
    await client.close()


async def test_a_client_may_listen_at_any_free_port(link: ProcessLink) -> None:
    client = AttachedLink(input_address(link.socket_dir), "tcp://127.0.0.1:*", 9, link.pid)
    await asyncio.wait_for(client.attach(), PATIENCE)
    await client.close()
