"""Peers that die, lie, or cannot be reached: D goes on, and holds nothing of theirs."""

import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headway.bench.lending_process import PEER, LendingProcess, prompt_of
from headway.config import KVTransport
from headway.scheduler.effects import Pull
from headway.transfer import handshake, messages, shared_memory
from headway.transfer.channel import Channel
from headway.transfer.connector import KVConnector
from headway.transfer.receiver import Failure
from tests.transfer.rig import BLOCK_SIZE, TOKEN, FakeManager, every_transport, layout, memory, pair, request, until


def connector_for(port: int, manager: FakeManager, *, transport: KVTransport = KVTransport.AUTO) -> KVConnector:
    """A D that knows one peer."""
    peers = {PEER: ("127.0.0.1", port)}
    return KVConnector(
        manager,
        memory(2),
        num_token_ids=100,
        lease_seconds=1000.0,
        peers=peers,
        num_streams=2,
        transport=transport,
    )


@every_transport
def test_a_p_that_is_killed_is_out_and_nothing_of_it_stays(transport: KVTransport) -> None:
    manager = FakeManager()
    with LendingProcess(layout(), transport) as p:
        port, _, handle = p.where
        d = connector_for(port, manager, transport=transport)
        for uid in (1, 2):
            params = p.lend(uid, [7, 8, 9])
            if uid == 2:
                assert (handle.name in Path("/proc/self/maps").read_text()) is (transport is KVTransport.SHARED_MEMORY)
                os.kill(p._process.pid, signal.SIGKILL)
                until(lambda: d.peers[0].problem)
            d.pull(Pull(prompt_of(uid, 3 * BLOCK_SIZE, params), np.array([1, 2, 3], np.int32), 0))
            until(lambda: len(manager.received) == uid)  # noqa: B023
        assert manager.received[0] == (1, 7, None)
        assert str(manager.received[1][2]).startswith("peer_down")
        assert handle.name not in Path("/proc/self/maps").read_text()
        assert not [name for folder in ("/dev/shm", "/tmp") for name in os.listdir(folder) if handle.name in name]
        d.close()


def impostor(answer: Callable[[Channel], None]) -> int:
    """A P that greets, and then says what it likes. Returns its port; it takes one connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        listener.close()
        channel = Channel(sock)
        handshake.receive(channel, layout(), None, engine=ENGINE, lease_seconds=100.0, memory=HANDLE)
        answer(channel)
        channel.close()

    threading.Thread(target=serve, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


OWN = memory(1)
HANDLE = OWN.handle()
ENGINE = b"e" * 16


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        struct.pack("<I", 2**30),
        struct.pack("<I", 1) + b"\xc1",
        struct.pack("<I", 8) + messages.encode(messages.Watch("a" * 3))[:8],
    ],
    ids=["SSH", "oversized", "junk", "half"],
)
def test_a_peer_that_sends_no_messages_is_cut_off_and_counted(sent: bytes) -> None:
    with pair() as two:  # for a reference
        params = two.expect(1) | {"remote_host": PEER[0], "remote_port": PEER[1]}
        manager = FakeManager()
        d = connector_for(impostor(lambda channel: channel._sock.sendall(sent)), manager)
        d.pull(Pull(request(50, 10, params), np.array([1, 2, 3], np.int32), 0))
        until(lambda: manager.received)
        assert manager.received[0][2] is not None
        until(lambda: d.peers[0].num_bad_messages)
        d.close()


def test_a_message_that_p_does_not_send_ends_the_connection() -> None:
    manager = FakeManager()
    d = connector_for(impostor(lambda channel: channel.send(messages.Renew(()))), manager)
    with pair() as two:
        d.want(50, two.expect(1) | {"remote_host": PEER[0], "remote_port": PEER[1]})
        until(lambda: d.peers[0].num_bad_messages)
        d.close()


def test_a_peer_that_does_not_listen_fails_every_pull_and_holds_none() -> None:
    with pair() as two:
        params = two.expect(1) | {"remote_host": "nothing"}
        for uid in (50, 51):
            two.pull(uid, params, [1, 2, 3])
            assert str(two.result(uid)[1]).startswith("peer_down")
        assert two.d.failures() == {Failure.PEER_DOWN: 2}


def test_more_connections_than_are_allowed_are_not_taken() -> None:
    with pair() as two:
        two.p.server._max_connections = 1
        first = socket.create_connection(("127.0.0.1", two.p.server.port))
        until(lambda: two.p.server.num_connections)
        second = socket.create_connection(("127.0.0.1", two.p.server.port))
        second.settimeout(30)
        assert second.recv(1) == b""
        assert two.p.server.num_refused == 1
        first.close()
        second.close()


def test_memory_that_cannot_be_mapped_is_read_over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*_: object) -> None:
        raise FileNotFoundError("no such process: P is in another container")

    monkeypatch.setattr(shared_memory, "PeerMemory", elsewhere)
    with pair() as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        two.pull(50, params, [1, 2, 3])
        assert two.result(50) == (TOKEN, None)
        assert two.d.peers[0].transport is KVTransport.TCP and two.same([7, 8, 9], [1, 2, 3])


def test_a_read_that_p_refuses_fails_its_pull_and_leaves_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with pair(transport=KVTransport.TCP) as two:
        readable = two.p.lender.readable
        refused = [1]

        def refuse_once(read: messages.Read) -> object:
            if refused:
                refused.pop()
                raise ValueError("the lease has just ended")
            return readable(read)

        monkeypatch.setattr(two.p.lender, "readable", refuse_once)
        for uid, expected in ((1, (None, "read: the lease has just ended")), (2, (TOKEN, None))):
            params = two.expect(uid)
            two.lend(uid, [7, 8, 9])
            two.pull(50 + uid, params, [1, 2, 3])
            assert two.result(50 + uid) == expected
        assert two.p.server.num_connections == 3
