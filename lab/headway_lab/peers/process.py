"""A peer's process, and the samples that come out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path

from headway.bench import answering
from headway.bench.child_process import AnsweringProcess, ChildError
from headway.bench.rounds import Samples
from headway_lab.peers.environment import Home, OwnEnvironment, PeerMissing
from headway_lab.peers.vllm_source import VLLM_SOURCE
from headway_lab.schedulers import workloads
from headway_lab.schedulers.workloads import Workload

HERE = Path(__file__).parent
RUNNER = (str(HERE / "runner.py"), answering.__file__, workloads.__file__)
PEERS: dict[str, Home] = {"vllm": VLLM_SOURCE, "transformers": OwnEnvironment()}
"""Where each peer runs."""


class Peer(AnsweringProcess):
    """A peer that runs for the time of a `with` block. name, version: of the peer."""

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__(command)
        self._keys = count(1)

    @property
    def name(self) -> str:
        name: str = self.hello["name"]
        return name

    @property
    def version(self) -> str:
        version: str = self.hello["version"]
        return version

    def run(self, workload: Workload) -> Iterator[Samples]:
        """The samples of each round. A round runs when its samples are asked for. Several workloads may be open at a
        time."""
        key = next(self._keys)
        self.ask({"open": key, "workload": type(workload).__name__, "fields": asdict(workload)})
        while (samples := self.ask({"next": key})) is not None:
            yield samples


@contextmanager
def open_peer(name: str) -> Iterator[Peer]:
    """Start a peer, whose environment is made first if it is missing.

    Raises PeerMissing, in one line that says how to get it, if that cannot be; ChildError if it fails later.
    """
    home = PEERS[name]
    command = [str(home.python()), *RUNNER, str(HERE / f"{name}_system.py")]
    with ExitStack() as stack:
        try:
            peer = stack.enter_context(Peer(command))
        except ChildError as error:
            raise PeerMissing(
                f"{name} does not start in {command[0]}: {str(error).splitlines()[-1]}; {home.how_to_get}"
            ) from error
        yield peer
