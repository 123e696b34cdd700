"""Two connectors over loopback, with managers that keep only leases, and KV memory whose contents are known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from headway.config import KVTransport
from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler.effects import Lending, Pull
from headway.transfer import nixl
from headway.transfer.connector import KVConnector
from headway.transfer.layout import KVLayout, LayerSizes
from headway.transfer.memory import KVMemory

BLOCK_SIZE = 4
LAYERS = (LayerSizes(2, 3, 2, 5), LayerSizes(1, 4, 1, 4))
PATIENCE = 30.0  # seconds; for what must happen, however slow the machine is
TOKEN = 7

needs_nixl = pytest.mark.skipif(not nixl.is_installed(), reason="NIXL is not installed: pip install 'headway[nixl]'")
TRANSPORTS = (
    KVTransport.SHARED_MEMORY,
    KVTransport.TCP,
    pytest.param(KVTransport.NIXL, marks=needs_nixl),
)
every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


def layout(num_blocks: int = 64, **changed: Any) -> KVLayout:
    """A small layout."""
    fields: dict[str, Any] = {"block_size": BLOCK_SIZE, "layers": LAYERS, "dtype": "float32", "itemsize": 4}
    return KVLayout(**(fields | {"model": "a model", "num_blocks": num_blocks} | changed))


def memory(seed: int, num_blocks: int = 64, **changed: Any) -> KVMemory:
    """KV memory full of noise."""
    made = KVMemory(layout(num_blocks, **changed))
    rng = np.random.default_rng(seed)
    for part in made.parts:
        part[:] = rng.integers(0, 256, part.shape, np.uint8)
    return made


def request(uid: int, num_tokens: int = 10, params: dict[str, Any] | None = None, **sampling: Any) -> Request:
    """A request whose prompt depends on its length alone."""
    return Request(
        request_id=f"r{uid}",
        uid=uid,
        prompt=np.arange(num_tokens, dtype=np.int32),
        sampling=SamplingParams(**({"temperature": 0.0} | sampling)),
        max_tokens=8,
        kv_transfer_params=params,
    )


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition. Raises AssertionError if it does not come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeManager:
    """Leases of P, and what D is told. received: (uid, token, error). on_consume: called before a lease is judged."""

    leases: dict[int, int] = field(default_factory=dict)
    renewed: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    consumed: list[tuple[int, bool]] = field(default_factory=list)
    received: list[tuple[int, int | None, str | None]] = field(default_factory=list)
    on_consume: Callable[[], None] = lambda: None
    on_received: Callable[[], None] = lambda: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def consume_lease(self, uid: int, generation: int, timeout: float = 5.0) -> bool:
        self.on_consume()
        with self.lock:
            valid = self.leases.get(uid) == generation
            if valid:
                del self.leases[uid]
            self.consumed.append((uid, valid))
            return valid

    def renew_leases(self, uids: Iterable[int]) -> None:
        self.renewed += uids

    def end_leases(self, uids: Iterable[int]) -> None:
        with self.lock:
            for uid in uids:
                self.ended.append(uid)
                self.leases.pop(uid, None)

    def receive_done(self, uid: int, token: int | None = None, error: str | None = None) -> None:
        self.on_received()
        self.received.append((uid, token, error))


@dataclass
class Pair:
    """P and D. lease_seconds: of P."""

    p: KVConnector
    d: KVConnector
    p_manager: FakeManager
    d_manager: FakeManager
    p_memory: KVMemory
    d_memory: KVMemory

    def expect(self, uid: int, num_tokens: int = 10, **sampling: Any) -> dict[str, Any]:
        """P has a request that lends; its parameters for D."""
        self.p.expect(request(uid, num_tokens, **sampling))
        params = self.p.handover(uid)
        assert params is not None
        return params

    def lend(self, uid: int, blocks: list[int], num_tokens: int = 10, token: int | None = TOKEN, gen: int = 0) -> None:
        """P's writer: so much is computed; with a token, a lease begins."""
        if token is not None:
            self.p_manager.leases[uid] = gen
        self.p.lending(Lending(uid, f"r{uid}", np.array(blocks, np.int32), num_tokens, gen, token))

    def revoke(self, uid: int) -> None:
        """P's writer: the lease has ended."""
        with self.p_manager.lock:
            self.p_manager.leases.pop(uid, None)
        self.p.revoked(uid)

    def pull(
        self, uid: int, params: dict[str, Any] | None, blocks: list[int], num_tokens: int = 10, **more: Any
    ) -> None:
        """D's writer: a request has blocks."""
        cached = more.pop("cached", 0)
        self.d.pull(Pull(request(uid, num_tokens, params, **more), np.array(blocks, np.int32), cached))

    def result(self, uid: int) -> tuple[int | None, str | None]:
        """What D is told of a pull: (token, error). It is told once."""
        until(lambda: any(one[0] == uid for one in list(self.d_manager.received)))
        found = [one[1:] for one in self.d_manager.received if one[0] == uid]
        assert len(found) == 1
        return found[0]

    def same(self, sources: list[int], targets: list[int]) -> bool:
        """Whether these blocks of D hold what these blocks of P hold."""
        pairs = zip(self.p_memory.parts, self.d_memory.parts, strict=True)
        return all(np.array_equal(p[sources], d[targets]) for p, d in pairs)


@contextmanager
def pair(
    *,
    transport: KVTransport = KVTransport.AUTO,
    lease_seconds: float = 1000.0,
    secrets: tuple[bytes | None, bytes | None] = (None, None),
    d_layout: dict[str, Any] | None = None,
    num_blocks: int = 64,
    clock: Callable[[], float] = time.monotonic,
    at: Callable[[int], int] = lambda port: port,
    **common: Any,
) -> Iterator[Pair]:
    """Two connectors. at: the port at which D finds P, by P's port."""
    p_memory = memory(1, num_blocks, **common)
    d_memory = memory(2, num_blocks + 8, **(common | (d_layout or {})))
    p_manager, d_manager = FakeManager(), FakeManager()
    options: dict[str, Any] = {"num_token_ids": 100, "lease_seconds": lease_seconds, "transport": transport}
    p = KVConnector(p_manager, p_memory, secret=secrets[0], address=("p", 1), clock=clock, **options)
    peers = {("p", 1): ("127.0.0.1", at(p.server.port)), ("nothing", 1): ("127.0.0.1", 1)}
    d = KVConnector(d_manager, d_memory, secret=secrets[1], peers=peers, clock=clock, num_streams=2, **options)
    try:
        yield Pair(p, d, p_manager, d_manager, p_memory, d_memory)
    finally:
        d.close()
        p.close()
