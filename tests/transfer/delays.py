"""Pulls that are held up in the middle, one way for each transport: something late comes as late as it can."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from headway.config import KVTransport
from headway.transfer import nixl, shared_memory
from headway.transfer.peer import Peer
from tests.transfer.proxy import Proxy
from tests.transfer.rig import TOKEN, Pair, pair, until


@dataclass
class Delay:
    """go_on: what was held up goes on. came_late: wait until that has had its effect, after D was told."""

    go_on: Callable[[], None]
    came_late: Callable[[], None]


@contextmanager
def held_pull(transport: KVTransport, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Pair, Delay]]:
    """Request 50 of D pulls blocks 7, 8, 9 of P into its blocks 1, 2, 3, and does not get on."""
    hold = {KVTransport.SHARED_MEMORY: _copies, KVTransport.TCP: _network, KVTransport.NIXL: _writes}[transport]
    with hold(monkeypatch) as (two, delay):
        yield two, delay


@contextmanager
def delayed_pair(**options: Any) -> Iterator[tuple[Pair, Proxy]]:
    """Two connectors that talk over TCP, with a network between them that a test can hold up."""
    proxies: list[Proxy] = []

    def at(port: int) -> int:
        proxies.append(Proxy(port))
        return proxies[0].port

    with pair(transport=KVTransport.TCP, at=at, **options) as two:
        try:
            yield two, proxies[0]
        finally:
            proxies[0].close()


def begin(two: Pair, proxy: Proxy) -> Peer:
    """A pull whose blocks are held up on their way."""
    params = two.expect(1)
    two.d.want(50, params)
    until(lambda: two.p_manager.renewed)  # all connections are there
    proxy.hold(blocks=True)
    two.lend(1, [7, 8, 9])
    two.pull(50, params, [1, 2, 3])
    until(lambda: proxy.num_held)
    return two.d.peers[0]


def _pull(two: Pair) -> dict[str, Any]:
    params = two.expect(1)
    two.lend(1, [7, 8, 9])
    two.pull(50, params, [1, 2, 3])
    return params


@contextmanager
def _copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Pair, Delay]]:
    """D is in the middle of a copy."""
    reached, gate = threading.Event(), threading.Event()

    class Slow:
        """numpy, whose copies wait."""

        @staticmethod
        def copyto(target: Any, source: Any) -> None:
            reached.set()
            assert gate.wait(30)
            np.copyto(target, source)

    monkeypatch.setattr(shared_memory, "np", Slow)
    with pair() as two:
        _pull(two)
        assert reached.wait(30)
        yield two, Delay(gate.set, lambda: None)


@contextmanager
def _network(_: pytest.MonkeyPatch) -> Iterator[tuple[Pair, Delay]]:
    """The bytes of the blocks are on their way."""
    with delayed_pair() as (two, proxy):
        begin(two, proxy)
        yield two, Delay(proxy.hold, lambda: until(lambda: proxy.num_held == 0))


@contextmanager
def _writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Pair, Delay]]:
    """P has said yes, and is about to write. The two have written before, so that the next write is one step."""
    reached, gate, agents = threading.Event(), threading.Event(), []
    begin_write, init = nixl.Agent.begin_write, nixl.Agent.__init__

    def late(*args: Any) -> None:
        reached.set()
        assert gate.wait(30)
        begin_write(*args)

    def collected(agent: nixl.Agent, memory: Any) -> None:
        agents.append(agent)
        init(agent, memory)

    def came_late() -> None:
        """An agent that is still open takes what comes."""
        until(lambda: two.p.server.num_connections == 0)
        for _ in range(100):
            for agent in agents:
                if agent._agent.agent is not None:
                    agent.drive()

    monkeypatch.setenv("UCX_TLS", "tcp")  # within one process the others write at once
    monkeypatch.setattr(nixl.Agent, "__init__", collected)
    with pair(transport=KVTransport.NIXL) as two:
        two.pull(49, two.expect(9), [4, 5, 6])
        two.lend(9, [7, 8, 9])
        assert two.result(49) == (TOKEN, None)
        monkeypatch.setattr(nixl.Agent, "begin_write", late)
        _pull(two)
        assert reached.wait(30)
        yield two, Delay(gate.set, came_late)
