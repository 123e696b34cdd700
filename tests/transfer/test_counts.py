"""What a connector counts: bytes and seconds by transport, peers by state, failures by reason."""

from __future__ import annotations

from typing import Any

import pytest

from headway.config import KVTransport
from headway.transfer.counts import WAYS, PeerState, TransferCounts
from headway.transfer.messages import MessageError
from headway.transfer.shared_memory import SharedMemoryReader
from headway.transfer.tcp import TcpReader
from tests.transfer.rig import Clock, Pair, pair, until

NO_PEERS = {state.value: 0 for state in PeerState}


def pulled(two: Pair, uid: int) -> None:
    """P lends three blocks, and D has read them."""
    params = two.expect(uid)
    two.lend(uid, [7, 8, 9])
    two.pull(uid + 50, params, [1, 2, 3])
    assert two.result(uid + 50)[1] is None


@pytest.mark.parametrize("mine", [KVTransport.SHARED_MEMORY, KVTransport.TCP])
def test_bytes_and_seconds_are_those_of_the_transport_that_has_read(
    mine: KVTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = dict.fromkeys(WAYS, 0)
    clock = Clock()
    for kind in (SharedMemoryReader, TcpReader):
        read = kind.read

        def slowly(self: Any, part: Any, read: Any = read) -> None:
            read(self, part)
            clock.now += 2.5

        monkeypatch.setattr(kind, "read", slowly)
    with pair(transport=mine, clock=clock) as two:
        pulled(two, 1)
        size = 3 * two.d_memory.layout.block_bytes
        d, p = two.d.counts(), two.p.counts()
        assert d.bytes_read == nothing | {mine: size}
        assert d.seconds == nothing | {mine: 2.5}
        sent = 0 if mine is KVTransport.SHARED_MEMORY else size
        assert p.bytes_sent == {"nixl": 0, "tcp": sent}, "P does not see what is read of its memory"
        assert p.bytes_read == nothing and d.bytes_sent == {"nixl": 0, "tcp": 0}
        clock.now += 100
        pulled(two, 2)
        assert two.d.counts().seconds == nothing | {mine: 5.0}, "time in which nothing is read does not count"
        assert two.d.counts().bytes_read == nothing | {mine: 2 * size}


def test_every_peer_that_may_be_read_from_is_in_one_state() -> None:
    with pair() as two:
        assert two.d.counts().peers == NO_PEERS | {"idle": 2}
        pulled(two, 1)
        assert two.d.counts().peers == NO_PEERS | {"idle": 1, "connected": 1}
        assert (two.p.counts().borrowers, two.d.counts().borrowers) == (1, 0) and two.p.counts().peers == NO_PEERS
        two.pull(60, two.expect(2) | {"remote_host": "nothing"}, [1, 2, 3])
        assert two.result(60)[1] is not None
        assert two.d.counts().peers == NO_PEERS | {"unreachable": 1, "connected": 1}
        two.p.server.close()
        until(lambda: two.d.counts().peers == NO_PEERS | {"unreachable": 2})
        assert two.p.counts().borrowers == 0


def test_a_peer_that_says_nothing_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with pair(lease_seconds=3.0, clock=clock) as two:
        pulled(two, 1)
        unanswered: list[object] = []
        monkeypatch.setattr("headway.transfer.lender.Borrower.take", lambda self, one: unanswered.append(one) or [])
        clock.now += 1.1
        two.d.check_peers()
        until(lambda: unanswered)  # a heartbeat, at a third of the lease
        clock.now += 3.1
        two.d.check_peers()
        until(lambda: two.d.counts().peers["silent"])


@pytest.mark.parametrize("changed", [{"secrets": (b"s" * 16, b"t" * 16)}, {"d_layout": {"dtype": "float64"}}], ids=str)
def test_a_peer_that_does_not_fit_is_refused(changed: dict[str, Any]) -> None:
    with pair(**changed) as two:
        two.pull(50, two.expect(1), [1, 2, 3])
        assert two.result(50)[1] is not None
        until(lambda: two.d.counts().peers["refused"])


def test_refusals_of_p_are_counted() -> None:
    with pair() as two:
        two.p.server._max_connections = 0
        two.pull(50, two.expect(1), [1, 2, 3])
        assert two.result(50)[1] is not None
        until(lambda: two.p.counts().num_refused)


def test_messages_that_do_not_parse_are_counted_with_the_peer_s_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def greet(*args: Any, **kwargs: Any) -> None:
        raise MessageError("junk")

    monkeypatch.setattr("headway.transfer.peer.handshake.greet", greet)
    with pair() as two:
        two.pull(50, two.expect(1), [1, 2, 3])
        assert two.result(50)[1] is not None
        until(lambda: two.d.counts().peers["bad_message"])
        assert two.d.counts().num_bad_messages >= 1


def test_failures_have_a_number_for_every_reason() -> None:
    with pair() as two:
        assert set(two.d.counts().failures.values()) == {0}
        two.pull(50, {"remote_host": "elsewhere", "remote_port": 1, **_rest(two)}, [1, 2, 3])
        two.pull(51, {"do_remote_prefill": True}, [1, 2, 3])
        failures = two.d.counts().failures
        assert {reason: count for reason, count in failures.items() if count} == {"unknown_peer": 1, "bad_params": 1}
        assert set(failures) == {"bad_params", "unknown_peer", "peer_down", "gone", "read", "stopped"}


def _rest(two: Pair) -> dict[str, Any]:
    params = two.expect(9)
    return {key: value for key, value in params.items() if key not in ("remote_host", "remote_port")}


def test_the_peer_of_a_request_is_known_on_both_sides_while_it_is_wanted() -> None:
    with pair() as two:
        params = two.expect(1)
        assert two.p.peer_of(1) is None and two.d.peer_of(50) is None
        two.d.want(50, params)
        assert two.d.peer_of(50) == f"127.0.0.1:{two.p.server.port}"
        until(lambda: two.p.peer_of(1))
        assert str(two.p.peer_of(1)).startswith("127.0.0.1:")
        two.lend(1, [7, 8, 9])
        two.pull(50, params, [1, 2, 3])
        assert two.result(50)[1] is None
        assert two.p.peer_of(1) is None and two.d.peer_of(50) is None


def test_counts_go_on_after_those_of_a_connector_before_and_gauges_do_not() -> None:
    before = TransferCounts({"connected": 2}, 3, {"tcp": 10}, {"tcp": 1}, {"tcp": 0.5}, {"gone": 1}, 4, 5).ended()
    assert before == TransferCounts({"connected": 0}, 0, {"tcp": 10}, {"tcp": 1}, {"tcp": 0.5}, {"gone": 1}, 4, 5)
    now = TransferCounts({"connected": 1}, 1, {"tcp": 7}, {"tcp": 2}, {"tcp": 0.25}, {"gone": 0, "read": 2}, 1, 1)
    assert now.after(before) == TransferCounts(
        {"connected": 1}, 1, {"tcp": 17}, {"tcp": 3}, {"tcp": 0.75}, {"gone": 1, "read": 2}, 5, 6
    )
