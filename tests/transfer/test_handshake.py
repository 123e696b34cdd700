"""Who is talked to, and what happens to the others."""

import socket
import struct
from typing import Any

import pytest

from headway.config import KVTransport
from headway.transfer import handshake, messages
from headway.transfer.channel import Channel, ChannelClosedError
from headway.transfer.handshake import RefusedError
from headway.transfer.layout import PROTOCOL, LayerSizes
from headway.transfer.messages import Purpose
from tests.transfer.rig import LAYERS, TOKEN, Clock, Pair, every_transport, layout, needs_nixl, pair, until

SECRET = b"a secret of at least 16 bytes"


def error_of_a_pull(two: Pair) -> str:
    params = two.expect(1)
    two.lend(1, [7, 8, 9])
    two.pull(50, params, [1, 2, 3])
    token, error = two.result(50)
    assert token is None and error is not None
    assert not two.p_manager.consumed
    return error


@every_transport
def test_peers_with_the_same_secret_talk(transport: KVTransport) -> None:
    with pair(secrets=(SECRET, SECRET), transport=transport) as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        two.pull(50, params, [1, 2, 3])
        assert two.result(50) == (TOKEN, None)


@pytest.mark.parametrize(
    ("secrets", "error"),
    [
        ((SECRET, SECRET + b"!"), "does not know the secret"),
        ((SECRET, None), "the peer has a secret (--kv-secret), and none was given here"),
        ((None, SECRET), "does not know the secret"),
    ],
    ids=["another", "P alone", "D alone"],
)
def test_peers_with_different_secrets_do_not(secrets: tuple[bytes | None, bytes | None], error: str) -> None:
    with pair(secrets=secrets) as two:
        assert error in error_of_a_pull(two)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"model": "other"}, "model differs: 'a model' here, 'other' there"),
        ({"block_size": 8}, "block_size differs: 4 here, 8 there"),
        ({"dtype": "bfloat16"}, "dtype differs: 'float32' here, 'bfloat16' there"),
        ({"layers": LAYERS[:1]}, "the number of layers differs: 2 here, 1 there"),
        ({"layers": (LayerSizes(1, 3, 1, 5), LAYERS[1])}, "the KV of layer 0 differs"),
    ],
    ids=str,
)
def test_engines_that_do_not_fit_name_both_values(changed: dict[str, Any], error: str) -> None:
    with pair(d_layout=changed) as two:
        assert error in error_of_a_pull(two)
        until(lambda: two.p.server.num_refused > 0)


def test_another_version_is_refused_with_both_numbers() -> None:
    with pair() as two:
        channel = Channel(socket.create_connection(("127.0.0.1", two.p.server.port)))
        channel.send(messages.Hello(9, b"n" * 16, Purpose.REQUESTS))
        assert channel.receive(30.0) == messages.Refused("protocol differs: 2 here, 9 there")
        channel.close()


def test_a_secret_that_could_be_guessed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes, got 5"):
        handshake.check_secret(b"short")


class FromHere(Channel):
    """A connection that comes over loopback."""

    @property
    def peer_host(self) -> str:
        return "127.0.0.1"


def test_a_p_of_another_version_is_not_talked_to_either() -> None:
    near, far = socket.socketpair()
    p, d = FromHere(near), FromHere(far)
    p.send(messages.Welcome(9, b"n" * 16, b""))
    with pytest.raises(RefusedError, match=f"protocol differs: {PROTOCOL} here, 9 there"):
        handshake.greet(d, layout(), None, purpose=Purpose.REQUESTS)
    assert isinstance(p.receive(30.0), messages.Hello)
    d.close()
    with pytest.raises(ChannelClosedError):  # neither a proof nor the layout was shown
        p.receive(30.0)
    p.close()


@pytest.mark.parametrize("step", ["at once", "after its greeting"])
def test_a_peer_that_skips_the_handshake_gets_nothing(step: str) -> None:
    """It may know a reference, for example from a router's log; it does not know the secret."""
    with pair(secrets=(SECRET, SECRET)) as two:
        text = two.expect(1)["remote_reference"]
        two.lend(1, [7, 8, 9])
        channel = Channel(socket.create_connection(("127.0.0.1", two.p.server.port)))
        if step != "at once":
            channel.send(messages.Hello(PROTOCOL, b"n" * 16, Purpose.REQUESTS))
            assert isinstance(channel.receive(30.0), messages.Welcome)
        channel.send(messages.Watch(text))
        answer = channel.receive(30.0)
        assert isinstance(answer, messages.Refused) and "Watch came where" in answer.reason
        with pytest.raises(ChannelClosedError):
            channel.receive(30.0)
        channel.close()
        assert two.p_manager.leases == {1: 0} and not two.p_manager.renewed and two.p.server.num_refused == 1


class Elsewhere(Channel):
    """A connection that does not come over loopback."""

    @property
    def peer_host(self) -> str:
        return "10.0.0.7"


def test_without_a_secret_only_loopback_is_talked_to() -> None:
    for side in (
        lambda channel: handshake.greet(channel, layout(), None, purpose=Purpose.REQUESTS),
        lambda channel: handshake.receive(channel, layout(), None, engine=b"e" * 16, lease_seconds=1.0, memory=None),
    ):
        near, far = socket.socketpair()
        with pytest.raises(RefusedError, match=r"10.0.0.7 is not on loopback.*--kv-secret"):
            side(Elsewhere(far))
        near.close()


def test_a_p_that_only_repeats_what_d_says_is_not_believed() -> None:
    """D gets a proof of its own kind back: it must not count as one of P."""
    nonce = b"n" * 16
    mine = handshake._proof(SECRET, b"D", nonce + nonce)
    with pytest.raises(RefusedError, match="does not know the secret"):
        handshake._check_proof(mine, SECRET, b"P", nonce + nonce)


def framed(message: messages.AnyMessage) -> bytes:
    raw = messages.encode(message)
    return struct.pack("<I", len(raw)) + raw


def raw_peer(two: Pair, *, purpose: Purpose = Purpose.REQUESTS) -> Channel:
    """A connection to P after its handshake."""
    channel = Channel(socket.create_connection(("127.0.0.1", two.p.server.port)))
    handshake.greet(channel, two.d_memory.layout, None, purpose=purpose)
    return channel


@pytest.mark.parametrize(
    "bad",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", 2**31),
        struct.pack("<I", 3) + b"abc",
        framed(messages.Reading(1)),
        framed(messages.Consumed(1, True)),
    ],
    ids=["HTTP", "oversized", "junk", "of P to D", "of P to D too"],
)
@pytest.mark.parametrize("purpose", [Purpose.REQUESTS, Purpose.TCP, pytest.param(Purpose.NIXL, marks=needs_nixl)])
def test_a_bad_message_is_counted_the_connection_is_closed_and_nothing_is_applied(bad: bytes, purpose: Purpose) -> None:
    with pair(transport=KVTransport(purpose) if purpose is Purpose.NIXL else KVTransport.AUTO) as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        channel = raw_peer(two, purpose=purpose)
        channel._sock.sendall(bad)
        with pytest.raises(OSError):
            while True:
                channel.receive(30.0)
        channel.close()
        until(lambda: two.p.server.num_connections == 0)
        assert two.p.server.num_bad_messages == 1
        two.pull(50, params, [1, 2, 3])  # everything else goes on
        assert two.result(50) == (TOKEN, None)


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("headway.transfer.channel.socket.socketpair", OSError("Too many open files")),
        ("headway.transfer.server.threading.Thread.start", RuntimeError("can't start new thread")),
    ],
    ids=["file descriptor", "thread"],
)
def test_p_serves_peers_again_after_a_connection_that_found_nothing_left(
    what: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pair() as two:
        stranger = socket.socket()
        stranger.settimeout(30.0)

        def fail(*_: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(what, fail)
            stranger.connect(("127.0.0.1", two.p.server.port))
            assert stranger.recv(1) == b""  # it is closed
        stranger.close()
        assert two.p.server.num_connections == 0
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        two.pull(50, params, [1, 2, 3])
        assert two.result(50) == (TOKEN, None)


@pytest.mark.parametrize(
    "message",
    [messages.Consume(1, 0), messages.Release((1,)), messages.Renew((1,))],
    ids=lambda message: type(message).__name__,
)
def test_a_uid_that_was_not_watched_by_its_reference_counts_for_nothing(message: messages.AnyMessage) -> None:
    with pair() as two:
        two.expect(1)
        two.lend(1, [7, 8, 9])
        channel = raw_peer(two)
        channel.send(message)
        channel.send(messages.Renew(()))
        answer = channel.receive(30.0)
        assert answer in (messages.Consumed(1, False), messages.Renewed())
        assert two.p_manager.leases == {1: 0} and not two.p_manager.renewed
        channel.close()


def test_a_consume_counts_exactly_once() -> None:
    with pair() as two:
        text = two.expect(1)["remote_reference"]
        two.lend(1, [7, 8, 9])
        channel = raw_peer(two)
        channel.send(messages.Watch(text))
        assert isinstance(channel.receive(30.0), messages.Progress)
        channel.send(messages.Consume(1, 0))
        channel.send(messages.Consume(1, 0))
        assert [channel.receive(30.0) for _ in range(2)] == [messages.Consumed(1, True), messages.Consumed(1, False)]
        channel.send(messages.Watch(text))
        assert isinstance(channel.receive(30.0), messages.Gone)
        channel.close()


def test_a_consume_of_another_generation_is_not_valid() -> None:
    with pair() as two:
        text = two.expect(1)["remote_reference"]
        two.lend(1, [7, 8, 9], gen=3)
        channel = raw_peer(two)
        channel.send(messages.Watch(text))
        channel.receive(30.0)
        channel.send(messages.Consume(1, 2))
        assert channel.receive(30.0) == messages.Consumed(1, False)
        channel.close()


def test_a_silent_d_is_cut_off_after_two_leases() -> None:
    clock = Clock()
    with pair(clock=clock, lease_seconds=30.0) as two:
        channel = raw_peer(two)
        clock.now += 61
        channel.send(messages.Watch("nothing"))  # it says something: it has more time
        assert isinstance(channel.receive(30.0), messages.Gone)
        assert two.p.server.num_connections == 1
        clock.now += 61
        two.expect(1)
        two.lend(1, [7, 8, 9])  # wakes the thread of the connection
        until(lambda: two.p.server.num_connections == 0)
        channel.close()
