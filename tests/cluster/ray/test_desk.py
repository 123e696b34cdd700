"""What an engine replica knows of its clients, and how their calls end."""

from __future__ import annotations

import asyncio

import pytest

from headway.cluster.ray import desk
from headway.cluster.ray.desk import Beat, Bye, Desk, Over
from headway.errors import EngineDeadError
from headway.wire.wire_errors import WireError

PATIENCE = 20.0
A, B = 2**60, 2**61


class Rig:
    def __init__(self) -> None:
        self.now = 0.0
        self.detached: list[int] = []
        self.desk = Desk(self.detached.append, lambda: self.now)

    async def hold(self, client: int, ticket: int) -> asyncio.Task[None]:
        call = asyncio.ensure_future(self.desk.hold(client, ticket))
        await asyncio.sleep(0)
        return call


async def ended(call: asyncio.Task[None]) -> None:
    await asyncio.wait_for(call, PATIENCE)


async def test_a_call_is_open_until_its_ticket_is_done_with() -> None:
    rig = Rig()
    rig.desk.take(Beat(A, 7))
    first, second = await rig.hold(A, 1), await rig.hold(A, 2)
    rig.desk.take(Over(A, [1]))
    await ended(first)
    assert not second.done() and rig.desk.num_open == 1
    rig.desk.take(Over(A, [2]))
    await ended(second)


async def test_word_of_the_end_that_comes_before_the_call_ends_it() -> None:
    rig = Rig()
    rig.desk.take(Over(A, [1]))
    await ended(await rig.hold(A, 1))
    assert not rig.desk.num_open


async def test_a_silent_client_is_dropped_with_its_calls_and_no_other() -> None:
    rig = Rig()
    rig.desk.take(Beat(A, 7))
    rig.desk.take(Beat(B, 8))
    mine, yours = await rig.hold(A, 1), await rig.hold(B, 1)
    rig.now = desk.SILENT_SECONDS - 1
    rig.desk.take(Beat(B, 8))
    rig.now = desk.SILENT_SECONDS + 1
    rig.desk.look()
    await ended(mine)
    assert rig.detached == [7] and not yours.done() and rig.desk.num_clients == 1
    await ended(await rig.hold(A, 2))  # a call of a client that has gone is not kept open
    with pytest.raises(WireError):
        rig.desk.take(Beat(A, 7))


async def test_a_client_that_died_before_its_first_word_does_not_keep_its_call_open() -> None:
    rig = Rig()
    call = await rig.hold(A, 1)
    rig.now = desk.SILENT_SECONDS + 1
    rig.desk.look()
    await ended(call)
    assert not rig.detached


async def test_a_client_that_says_goodbye_is_detached_once() -> None:
    rig = Rig()
    rig.desk.take(Beat(A, 7))
    call = await rig.hold(A, 1)
    rig.desk.take(Bye(A))
    await ended(call)
    assert rig.detached == [7]


async def test_a_client_that_attaches_itself_anew_is_detached_under_its_old_number() -> None:
    rig = Rig()
    rig.desk.take(Beat(A, 7))
    rig.desk.take(Beat(A, 9))
    rig.desk.take(Bye(A))
    assert rig.detached == [7, 9]


async def test_when_the_engine_dies_open_calls_and_later_ones_say_so() -> None:
    rig = Rig()
    call = await rig.hold(A, 1)
    rig.desk.fail("killed")
    with pytest.raises(EngineDeadError, match="killed"):
        await asyncio.wait_for(call, PATIENCE)
    with pytest.raises(EngineDeadError, match="killed"):
        await rig.desk.hold(A, 2)


async def test_a_call_that_ray_cancels_leaves_nothing_behind() -> None:
    rig = Rig()
    call = await rig.hold(A, 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not rig.desk.num_open


@pytest.mark.parametrize("message", [Beat(A, 7), Over(A, [1, 2]), Bye(A)])
def test_messages_cross(message: desk.ToDesk) -> None:
    assert desk.decode(desk.encode(message)) == message


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x93\xa4None\x01\x02", b"\x91" * 5000])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        desk.decode(data)
