"""The peers' environments. vLLM has one of its own, made once; transformers is among our own dependencies.

Only the Python source of vLLM is installed: its scheduler runs without the kernels, which take an hour to build. PyPI
has the source as an archive. The set-up script of the archive needs torch and build tools to write its metadata.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

VLLM = "0.33.0"
TORCH = "2.13.0"  # installed first and alone: then packages that depend on torch accept the build that pip has found
BUILD_TOOLS = ("setuptools", "setuptools-rust", "setuptools-scm", "packaging", "wheel", "ninja", "cmake", "jinja2")
REQUIREMENTS = Path(__file__).parent / "vllm-requirements.txt"

HOW_TO_GET = {
    "vllm": "the command makes its environment itself, by pip from PyPI (some minutes, 2 GB): see that pip reaches a "
    "package index, and run it again",
    "transformers": "pip install 'transformers>=5.17,<6' into the environment that headway runs in",
}


class PeerMissing(ValueError):
    """The peer cannot be run here; the message says, in one line, why and how to get it."""


def own_python() -> Path:
    """The environment that this runs in, if it has transformers with continuous batching."""
    try:
        found = importlib.util.find_spec("transformers.generation.continuous_batching.continuous_api") is not None
    except ImportError:
        found = False
    if not found:
        raise PeerMissing(f"transformers' continuous batching is not installed; {HOW_TO_GET['transformers']}")
    return Path(sys.executable)


def vllm_folder() -> Path:
    """The folder of vLLM's environment, which may not exist yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "headway" / "peers" / f"vllm-{VLLM}-python{sysconfig.get_python_version()}"


def vllm_is_ready() -> bool:
    """Whether vLLM's environment exists, is made as today's code makes it, and has the Python that this runs in: two
    builds of one version can differ in speed by a third."""
    mark = vllm_folder() / ".ready"
    return mark.is_file() and mark.read_text() == _recipe()


def vllm_python() -> Path:
    """The Python of vLLM's environment. Makes the environment if it is not there; a second command waits meanwhile.

    Raises PeerMissing.
    """
    folder = vllm_folder()
    python = folder / "bin" / "python"
    if not vllm_is_ready():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not vllm_is_ready():
                print(f"making an environment for vLLM {VLLM} in {folder}: once, some minutes", file=sys.stderr)
                _make_vllm(folder, python)
                (folder / ".ready").write_text(_recipe())
    return python


def _recipe() -> str:
    parts = (sys.version, VLLM, TORCH, *BUILD_TOOLS, REQUIREMENTS.read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _make_vllm(folder: Path, python: Path) -> None:
    _run(sys.executable, "-m", "venv", "--clear", folder)
    pip = (python, "-m", "pip", "--disable-pip-version-check", "-q")
    _run(*pip, "install", f"torch=={TORCH}")
    _run(*pip, "install", *BUILD_TOOLS)
    _run(*pip, "install", "-r", REQUIREMENTS)
    with tempfile.TemporaryDirectory() as downloads:
        _run(
            *(*pip, "download", f"vllm=={VLLM}", "--no-deps", "--no-binary", "vllm", "--no-build-isolation"),
            *("-d", downloads),
            VLLM_VERSION_OVERRIDE=VLLM,
            VLLM_TARGET_DEVICE="empty",
        )
        archive = next(Path(downloads).glob("vllm-*.tar.gz"))
        base = {"base": str(folder), "platbase": str(folder)}
        _unpack(archive, Path(sysconfig.get_path("purelib", "venv", vars=base)))


def _unpack(archive: Path, target: Path) -> None:
    """The package itself; not its kernels, tests and documents."""
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, path = member.name.partition("/")
            if path.startswith("vllm/"):
                tar.extract(member.replace(name=path, deep=False), target, filter="data")


def _run(*command: str | Path, **environment: str) -> None:
    """Raises PeerMissing with the command's last words if it fails."""
    try:
        done = subprocess.run(
            [str(part) for part in command], env=os.environ | environment, capture_output=True, text=True
        )
    except OSError as error:
        raise PeerMissing(f"vllm could not be installed: {error}; {HOW_TO_GET['vllm']}") from error
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise PeerMissing(f"vllm could not be installed: {words[-1]}; {HOW_TO_GET['vllm']}")
