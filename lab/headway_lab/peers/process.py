"""A peer's process, and the samples that come out of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from headway.bench import workloads
from headway.bench.peers import environment
from headway.bench.workloads import Samples, Workload

HERE = Path(__file__).parent
RUNNER = HERE / "runner.py"
PEERS: dict[str, Callable[[], Path]] = {
    "vllm": environment.vllm_python,
    "transformers": environment.own_python,
}
"""The Python of each peer's environment, which is made if need be."""


class PeerError(RuntimeError):
    """The peer's process failed while it measured; the message holds its last words."""


class Peer:
    """A running peer. name, version: its own."""

    def __init__(self, command: list[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._keys = count(1)
        try:
            hello = self._answer()
        except PeerError:
            self.close()
            raise
        self.name: str = hello["name"]
        self.version: str = hello["version"]

    def run(self, workload: Workload) -> Iterator[Samples]:
        """The samples of each round, which is run when they are asked for. Several workloads may be open at a time."""
        key = next(self._keys)
        self._ask({"open": key, "workload": type(workload).__name__, "fields": asdict(workload)})
        while "samples" in (answer := self._ask({"next": key})):
            yield answer["samples"]
        self._ask({"close": key})

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._errors.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; why, is said below
            print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip()
            raise PeerError(f"the peer's process ended with exit code {status}:\n{words[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def open_peer(name: str) -> Iterator[Peer]:
    """Start a peer, whose environment is made first if it is missing.

    Raises PeerMissing, in one line that says how to get it, if that cannot be.
    """
    command = [str(PEERS[name]()), str(RUNNER), workloads.__file__, str(HERE / f"{name}_system.py")]
    try:
        peer = Peer(command)
    except PeerError as error:
        raise environment.PeerMissing(
            f"{name} does not start in {command[0]}: {str(error).splitlines()[-1]}; {environment.HOW_TO_GET[name]}"
        ) from error
    try:
        yield peer
    finally:
        peer.close()
