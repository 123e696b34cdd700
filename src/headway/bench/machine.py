"""What figures were measured on."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

from headway.bench.report import Row

_CPUINFO = Path("/proc/cpuinfo")


@cache
def machine() -> Row:
    """machine: processor and cores that this process may use. python, numpy: versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": f"{_processor()}, {cores} cores",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": version("numpy"),
    }


def described() -> str:
    """The same in one line."""
    facts = machine()
    return f"{facts['machine']}; {facts['python']}, numpy {facts['numpy']}"


def _processor() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
