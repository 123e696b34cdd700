"""`headway collect-env`: what a report of a fault should say of the machine and its packages."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from headway import __version__

_PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "xgrammar", "fastapi", "uvicorn", "pydantic"),
    *("httpx", "msgspec", "pyzmq", "typer", "numba", "flashinfer-python", "nixl-cu12", "vllm"),
)
# The only variables that are shown: no name of these can hold a key, a token or an address with a password.
_VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "LD_LIBRARY_PATH", "HF_HUB_OFFLINE", "LANG")
EXAMPLES = (
    "headway collect-env",
    "headway collect-env > report.txt",
    "headway collect-env --json",
)
_GIB = 2**30
_DRIVER_S = 30.0  # seconds for the driver of the GPUs to answer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print versions, processor, memory and GPUs, for a report of a fault.

    It shows no keys, no tokens and no paths of models.
    """
    facts = dict(_facts())
    if as_json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def _facts() -> Iterator[tuple[str, str]]:
    import psutil  # type: ignore[import-untyped]

    yield "headway", __version__
    yield "python", f"{platform.python_implementation()} {sys.version.split()[0]} ({platform.python_compiler()})"
    yield "system", platform.platform()
    yield "processor", _processor()
    yield "cores", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} for this process"
    yield "memory", f"{psutil.virtual_memory().total / _GIB:.1f} GiB"
    yield "shared memory", f"{_free('/dev/shm')} free"
    yield from _gpus()
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
    yield from ((name, os.environ[name]) for name in _VARIABLES if name in os.environ)


def _processor() -> str:
    """Its name as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _free(folder: str) -> str:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return "unknown"
    return f"{disk.f_bavail * disk.f_frsize / _GIB:.1f} GiB"


def _gpus() -> Iterator[tuple[str, str]]:
    """One line per GPU, as its driver names it."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=_DRIVER_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield "gpu", "none" if isinstance(error, FileNotFoundError) else f"nvidia-smi does not answer: {error}"
        return
    for number, line in enumerate(done.stdout.splitlines()):
        yield f"gpu {number}", line
