"""NIXL: what it needs, and two processes of which one stops in the middle of a write."""

import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from headway.bench.lending_process import PEER, LendingProcess, prompt_of
from headway.config import KVTransport
from headway.scheduler.effects import Pull
from headway.transfer import nixl
from headway.transfer.connector import KVConnector
from headway.transfer.messages import Purpose, Read, Write
from tests.transfer.rig import BLOCK_SIZE, TOKEN, FakeManager, layout, memory, needs_nixl, pair, until

NUM_BLOCKS = 2048
WIDE = {"layers": layout().layers * 64}  # so many blocks are several slices


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing is said of UCX."""
    for name in ("UCX_TLS", "UCX_NET_DEVICES"):
        monkeypatch.setenv(name, "")  # so that what a test leaves behind goes
        monkeypatch.delenv(name)
    return monkeypatch


def test_where_nixl_is_missing_the_error_names_the_extra(environment: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    environment.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"^the KV transport nixl needs an extra: pip install 'headway\[nixl\]'$"):
        KVConnector(
            FakeManager(), memory(1), num_token_ids=100, lease_seconds=1.0, transport=KVTransport.NIXL
        )  # before it listens


@pytest.mark.parametrize(
    ("chosen", "unfenced"),
    [
        ("tcp", None),
        ("rc,tcp,posix", None),
        ("^sm", None),
        ("^cma,knem,xpmem,tcp", None),
        ("all", "all"),
        ("tcp,cma", "cma"),
        ("sm,tcp", "sm"),
        ("^cma", "knem, xpmem"),
    ],
)
def test_ways_of_ucx_that_write_past_a_closed_agent_are_refused(
    chosen: str, unfenced: str | None, environment: pytest.MonkeyPatch
) -> None:
    environment.setattr(nixl, "_library", lambda: None)
    environment.setenv("UCX_TLS", chosen)
    if unfenced is None:
        nixl.prepare(on_loopback=False)
        return
    with pytest.raises(ValueError) as caught:
        nixl.prepare(on_loopback=False)
    assert f"allows {unfenced}: a late write could not be stopped" in str(caught.value)


@pytest.mark.parametrize("on_loopback", [True, False])
def test_ucx_listens_on_loopback_alone_where_all_peers_are_there(
    on_loopback: bool, environment: pytest.MonkeyPatch
) -> None:
    environment.setattr(nixl, "_library", lambda: None)
    nixl.prepare(on_loopback=on_loopback)
    assert os.environ.get("UCX_NET_DEVICES") == ("lo" if on_loopback else None)
    assert os.environ["UCX_TLS"] == "^cma,knem,xpmem"


@pytest.mark.parametrize(
    ("p", "d", "error"),
    [
        (KVTransport.TCP, KVTransport.SHARED_MEMORY, "cannot be mapped (--kv-transport shared-memory): it shares none"),
        pytest.param(
            KVTransport.AUTO,
            KVTransport.NIXL,
            "this engine has no NIXL: it needs --kv-transport nixl too",
            marks=needs_nixl,
        ),
    ],
)
def test_a_way_that_d_names_and_p_does_not_have_is_said_and_no_other_is_taken(
    p: KVTransport, d: KVTransport, error: str
) -> None:
    with pair(transport=p) as two:
        manager = FakeManager()
        peers = {("p", 1): ("127.0.0.1", two.p.server.port)}
        other = KVConnector(manager, memory(3), num_token_ids=100, lease_seconds=1000.0, peers=peers, transport=d)
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        other.pull(Pull(prompt_of(50, 10, params), np.array([1, 2, 3], np.int32), 0))
        until(lambda: manager.received)
        assert error in str(manager.received[0][2])
        other.close()


@needs_nixl
@pytest.mark.parametrize("targets", [[1, 2], [1, 2, 999], [-1, 1, 2]], ids=["too few", "beyond", "negative"])
def test_targets_that_are_no_blocks_of_d_cut_the_connection_and_nothing_is_written(targets: list[int]) -> None:
    from tests.transfer.test_handshake import raw_peer

    with pair(transport=KVTransport.NIXL) as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        before = [part.copy() for part in two.d_memory.parts]
        agent = nixl.Agent(two.d_memory)
        channel = raw_peer(two, purpose=Purpose.NIXL)
        channel.send(nixl.Reach(agent.metadata, two.d_memory.address))
        read = Read(params["remote_reference"], 0, 0, 3)
        channel.send(Write(read, 1, np.array(targets, "<i4").tobytes()))
        with pytest.raises(OSError):
            channel.receive(30.0)
        until(lambda: two.p.server.num_bad_messages == 1)
        agent.drive()
        assert all(np.array_equal(part, old) for part, old in zip(two.d_memory.parts, before, strict=True))
        agent.close()
        channel.close()


@needs_nixl
def test_a_d_that_leaves_does_not_cut_the_others() -> None:
    """Each has an agent of its own on P."""
    with pair(transport=KVTransport.NIXL) as two:
        manager = FakeManager()
        peers = {("p", 1): ("127.0.0.1", two.p.server.port)}
        other = KVConnector(
            manager, memory(3), num_token_ids=100, lease_seconds=1000.0, peers=peers, transport=KVTransport.NIXL
        )
        params = two.expect(9)
        two.lend(9, [7, 8, 9])
        two.pull(50, params, [1, 2, 3])
        assert two.result(50) == (TOKEN, None)
        for uid in (1, 2):
            params = two.expect(uid)
            two.lend(uid, [7, 8, 9])
            other.pull(Pull(prompt_of(uid, 10, params), np.array([1, 2, 3], np.int32), 0))
            until(lambda: len(manager.received) == uid)  # noqa: B023
            assert manager.received[-1] == (uid, TOKEN, None)
            two.d.close()
            until(lambda: two.p.server.num_connections == 2)
        other.close()


@needs_nixl
def test_metadata_that_is_none_ends_the_connection_and_p_goes_on() -> None:
    from tests.transfer.test_handshake import raw_peer

    with pair(transport=KVTransport.NIXL) as two:
        channel = raw_peer(two, purpose=Purpose.NIXL)
        channel.send(nixl.Reach(b"no metadata", 0))
        with pytest.raises(OSError):
            channel.receive(30.0)
        channel.close()
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        two.pull(50, params, [1, 2, 3])
        assert two.result(50) == (TOKEN, None)


@contextmanager
def puller(port: int, manager: FakeManager, **options: Any) -> Iterator[KVConnector]:
    d = KVConnector(
        manager,
        memory(2, NUM_BLOCKS, **WIDE),
        num_token_ids=100,
        lease_seconds=1000.0,
        peers={PEER: ("127.0.0.1", port)},
        transport=KVTransport.NIXL,
        **options,
    )
    try:
        yield d
    finally:
        d.close()


def pull_all(d: KVConnector, uid: int, params: dict[str, Any]) -> None:
    prompt = prompt_of(uid, NUM_BLOCKS * BLOCK_SIZE, params)
    d.pull(Pull(prompt, np.arange(NUM_BLOCKS, dtype=np.int32), 0))


@needs_nixl
def test_a_p_that_is_stopped_in_the_middle_writes_no_more_lives_and_serves_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")  # as between two hosts; with a read instead of a write, UCX would end P here
    blocks = list(range(NUM_BLOCKS))
    with LendingProcess(layout(NUM_BLOCKS, **WIDE), KVTransport.NIXL) as p:
        manager = FakeManager()
        with puller(p.where[0], manager) as d:
            pull_all(d, 1, p.lend(1, blocks))
            until(lambda: d.peers and d.peers[0].bytes_by_transport[KVTransport.NIXL])
            os.kill(p._process.pid, signal.SIGSTOP)
        ours = d._setting.memory
        assert len(manager.received) == 1  # closing has ended it, all read or not
        for part in ours.parts:
            part[:] = 77  # a new owner has the blocks
        os.kill(p._process.pid, signal.SIGCONT)
        with puller(p.where[0], manager) as other:
            pull_all(other, 2, p.lend(2, blocks))
            until(lambda: len(manager.received) == 2)
            assert manager.received[1] == (2, TOKEN, None)
        assert all((part == 77).all() for part in ours.parts)
