"""An environment of a peer: its own packages in a folder of the user's cache, made when it is missing."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class PeerMissing(ValueError):
    """The peer cannot be run here; the message says, in one line, why and how to get it."""


class Home(Protocol):
    """Where a peer can run."""

    @property
    def how_to_get(self) -> str:
        """What to do where it is missing, in one line."""

    def python(self) -> Path:
        """The Python that has the peer. Raises PeerMissing."""


class OwnEnvironment:
    """The environment that this runs in, if it has transformers with continuous batching."""

    how_to_get = "pip install 'transformers>=5.17,<6' into the environment that headway runs in"

    def python(self) -> Path:
        try:
            found = importlib.util.find_spec("transformers.generation.continuous_batching.continuous_api") is not None
        except ImportError:
            found = False
        if not found:
            raise PeerMissing(f"transformers' continuous batching is not installed; {self.how_to_get}")
        return Path(sys.executable)


@dataclass(frozen=True)
class Environment:
    """An environment that is made by pip, once.

    name: of its folder, which the version of Python follows.
    title: what it is for, in messages.
    cost: of making it, in messages.
    parts: what decides, beside the Python that this runs in, what comes out. It is made anew when one changes: two
        builds of one version can differ in speed by a third.
    fill: puts the packages into the new environment.
    shelf: the folder, in Headway's own of the user's cache, that the environment lies in.
    """

    name: str
    title: str
    cost: str
    parts: tuple[str, ...]
    fill: Callable[[Installer], None]
    shelf: str = "peers"

    @property
    def how_to_get(self) -> str:
        """What to do where it cannot be made, in one line."""
        return (
            f"the command makes its environment itself, by pip from PyPI ({self.cost}): see that pip reaches a package "
            "index, and run it again"
        )

    @property
    def folder(self) -> Path:
        """The folder of the environment, which may not exist yet."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "headway" / self.shelf / f"{self.name}-python{sysconfig.get_python_version()}"

    def is_ready(self) -> bool:
        """Whether it exists, as today's recipe makes it."""
        mark = self.folder / ".ready"
        return mark.is_file() and mark.read_text() == self.recipe()

    def recipe(self) -> str:
        """A digest of the parts."""
        return hashlib.sha256("\n".join((sys.version, *self.parts)).encode()).hexdigest()

    def python(self) -> Path:
        """The Python of the environment. Makes the environment if it is not there; a second command waits meanwhile.

        Raises PeerMissing.
        """
        folder = self.folder
        python = folder / "bin" / "python"
        if not self.is_ready():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with (folder.parent / f"{folder.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self.is_ready():
                    print(f"making an environment for {self.title} in {folder}: once, {self.cost}", file=sys.stderr)
                    installer = Installer(self, folder, python)
                    installer.run(sys.executable, "-m", "venv", "--clear", folder)
                    self.fill(installer)
                    (folder / ".ready").write_text(self.recipe())
        return python


@dataclass(frozen=True)
class Installer:
    """Fills an environment. Its methods raise PeerMissing, with the last error that a failing command told."""

    environment: Environment
    folder: Path
    python: Path

    @property
    def site_packages(self) -> Path:
        """The folder that the packages lie in."""
        base = {"base": str(self.folder), "platbase": str(self.folder)}
        return Path(sysconfig.get_path("purelib", "venv", vars=base))

    def pip(self, *arguments: str | Path, **variables: str) -> None:
        """Run pip of the environment. variables: of the process, beside its own."""
        self.run(self.python, "-m", "pip", "--disable-pip-version-check", "-q", *arguments, **variables)

    def run(self, *command: str | Path, **variables: str) -> None:
        """Run a command."""
        try:
            done = subprocess.run(
                [str(part) for part in command], env=os.environ | variables, capture_output=True, text=True
            )
        except OSError as error:
            raise self._failed(str(error)) from error
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
            errors = [line for line in lines if line.lower().startswith("error:")]
            raise self._failed((errors or lines)[-1])

    def _failed(self, why: str) -> PeerMissing:
        peer = self.environment
        return PeerMissing(f"{peer.title} could not be installed: {why}; {peer.how_to_get}")
