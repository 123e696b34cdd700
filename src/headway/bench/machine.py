"""The machine and the versions that figures were measured with."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

from headway import __version__
from headway.bench.report import Row

_CPUINFO = Path("/proc/cpuinfo")


LIBRARIES = ("numpy", "torch", "transformers")


@cache
def machine() -> Row:
    """machine: processor and cores that this process may use. python, headway, numpy, ...: versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": f"{_processor()}, {cores} cores",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "headway": __version__,
        **{library: version(library) for library in LIBRARIES},
    }


def described(facts: Row) -> str:
    """The facts of `machine` in one line."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("headway", *LIBRARIES))
    return f"{facts['machine']}; {facts['python']}, {versions}"


def _processor() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
