"""A late read or write never reaches a block that has a new owner."""

import threading
from typing import Any

import numpy as np
import pytest

from headway.config import KVTransport
from headway.transfer import tcp
from tests.transfer.delays import begin, delayed_pair, held_pull
from tests.transfer.rig import TOKEN, Clock, Pair, every_transport, pair, until


def contents(two: Pair, blocks: list[int]) -> list[Any]:
    return [part[blocks].copy() for part in two.d_memory.parts]


def test_a_stopped_pull_over_tcp_gives_its_blocks_back_only_when_its_last_bytes_have_come() -> None:
    with delayed_pair() as (two, proxy):
        begin(two, proxy)
        two.d.stop_pull(50)
        until(lambda: two.p_manager.ended == [1])  # D has seen the stop, and P has heard of it
        assert not two.d_manager.received
        proxy.hold()
        assert str(two.result(50)[1]).startswith("stopped")
        assert two.same([7, 8, 9], [1, 2, 3])  # they did come, before


def test_blocks_of_a_silent_peer_come_back_after_its_connections_are_closed_and_late_bytes_are_lost() -> None:
    clock = Clock()
    with delayed_pair(clock=clock, lease_seconds=30.0) as (two, proxy):
        peer = begin(two, proxy)
        proxy.hold(blocks=True, messages=True)
        clock.now += 10.5
        peer.wake()
        until(lambda: proxy.num_held == 2)  # the answer to a heartbeat waits too
        assert not two.d_manager.received
        before = contents(two, [1, 2, 3])
        clock.now += 30.5
        peer.wake()
        error = str(two.result(50)[1])
        assert error.startswith("peer_down") and "has said nothing for 30.5 s" in error
        proxy.hold()
        until(lambda: proxy.num_held == 0)
        for part, old in zip(contents(two, [1, 2, 3]), before, strict=True):
            assert np.array_equal(part, old)


def test_a_peer_that_answers_late_is_not_given_up_after_a_long_sleep_of_d() -> None:
    clock = Clock()
    with delayed_pair(clock=clock, lease_seconds=30.0) as (two, proxy):
        peer = begin(two, proxy)
        clock.now += 3600.0  # D was stopped; P owes nothing
        peer.wake()
        proxy.hold()
        assert two.result(50) == (TOKEN, None)


def test_a_connection_that_is_cut_in_the_middle_ends_the_pull_and_the_peer_comes_back_by_itself() -> None:
    with delayed_pair() as (two, proxy):
        begin(two, proxy)
        proxy.cut()
        assert str(two.result(50)[1]).startswith("peer_down")
        waits = two.expect(2)
        two.d.want(51, waits)  # in the queue of D: it waits for the peer
        assert two.d.peers[0].problem is not None
        proxy.hold()
        proxy.mend()
        until(lambda: two.d.peers[0].problem is None)
        two.lend(2, [10, 11, 12])
        two.pull(51, waits, [4, 5, 6])
        assert two.result(51) == (TOKEN, None)
        assert two.same([10, 11, 12], [4, 5, 6])


def test_a_block_that_is_damaged_on_its_way_fails_the_pull_and_only_that_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    """P writes to a block between its checksum and its bytes: the lease had ended, and the block has a new owner."""
    true_checksum = tcp._checksum
    with pair(transport=KVTransport.TCP) as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        wrong = [1]

        def checksum(row: Any) -> int:
            return true_checksum(row) ^ (wrong.pop() if wrong else 0)

        monkeypatch.setattr(tcp, "_checksum", checksum)
        before = contents(two, [1])
        two.pull(50, params, [1, 2, 3])
        assert str(two.result(50)[1]) == "read: 1 of 3 blocks have come with a wrong checksum"
        assert all(np.array_equal(part, old) for part, old in zip(contents(two, [1]), before, strict=True))
        params = two.expect(2)
        two.lend(2, [7, 8, 9])
        two.pull(51, params, [1, 2, 3])
        assert two.result(51) == (TOKEN, None)


@every_transport
@pytest.mark.parametrize("how", ["stopped", "peer gone", "connector closed"])
def test_nothing_that_comes_late_reaches_a_block_with_a_new_owner(
    how: str, transport: KVTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D is told when nothing can write any more: at once where the reader can be closed, else when all has come."""
    with held_pull(transport, monkeypatch) as (two, delay):
        told = threading.Event()

        def on_received() -> None:
            for part in two.d_memory.parts:
                part[[1, 2, 3]] = 77  # a new owner has the blocks
            told.set()

        two.d_manager.on_received = on_received
        ends = threading.Thread(target=two.p.server.close if how == "peer gone" else two.d.close)
        if how == "stopped":
            two.d.stop_pull(50)
            until(lambda: two.p_manager.ended == [1])
        else:
            ends.start()
        if how == "stopped" or transport is KVTransport.SHARED_MEMORY:
            assert not told.wait(0.1)  # long enough to see it told too early
            delay.go_on()
        assert two.result(50)[1] is not None
        delay.go_on()
        if how != "stopped":
            ends.join()
            delay.came_late()
        assert all((part[[1, 2, 3]] == 77).all() for part in two.d_memory.parts)


@every_transport
def test_what_is_read_of_blocks_with_a_new_owner_is_void(transport: KVTransport) -> None:
    """P's blocks have a new owner before D reads them: D gets the other content, and may not use it."""
    with pair(transport=transport) as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        with two.p_manager.lock:
            two.p_manager.leases.clear()  # the core has taken the blocks back; the connector has not heard of it yet
        for part in two.p_memory.parts:
            part[[7, 8, 9]] = 1
        two.pull(50, params, [1, 2, 3])
        token, error = two.result(50)
        assert token is None and "the lease had ended" in str(error)


def test_closing_a_connector_answers_every_pull() -> None:
    with pair() as two:
        for uid in range(3):
            two.pull(50 + uid, two.expect(uid), [1, 2, 3])
        two.d.close()
        assert sorted(uid for uid, _, error in two.d_manager.received if error) == [50, 51, 52]
