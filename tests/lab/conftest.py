"""A stand-in for peers."""

from contextlib import contextmanager

import pytest
from headway_lab.peers import process
from headway_lab.schedulers.headway_system import HeadwaySystem


@pytest.fixture
def fake_peers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Peers that are our own scheduler again; returns the started peers."""
    started = []

    class Fake:
        version = "9.9"

        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, workload, **system):
            return workload.run(HeadwaySystem)

    @contextmanager
    def open_peer(name: str, *, with_headway: bool = False):
        started.append(f"{name} with headway" if with_headway else str(name))
        yield Fake(str(name))

    monkeypatch.setattr(process, "open_peer", open_peer)
    return started
