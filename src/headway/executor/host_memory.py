"""The memory that this process can still get from its host: what the system has, and what its cgroups leave it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")

# Of each version: the folder of its hierarchy, the files with limit and use in bytes, and the key in memory.stat of
# what the kernel takes back when it needs memory.
_V2 = ("", "memory.max", "memory.current", "inactive_file")
_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Bytes that can be taken without swapping and without a kill by the kernel.

    cgroups: where the hierarchies are mounted. own: the file that names the cgroups of this process.
    """
    left = psutil.virtual_memory().available
    for version, path in _memory_cgroups(own):
        mount, limit_file, used_file, cache_key = version
        top = cgroups / mount
        # Every cgroup on the way to the top has a limit of its own. In a container the path may name folders outside
        # of it; then only the top is there.
        folder = top / path.lstrip("/")
        for level in (folder, *folder.parents):
            left = min(left, _left_in(level, limit_file, used_file, cache_key, left))
            if level == top:
                break
    return max(int(left), 0)


def _memory_cgroups(own: Path) -> list[tuple[tuple[str, str, str, str], str]]:
    """The versions of cgroup that limit the memory of this process, each with the path in its hierarchy."""
    found = []
    with contextlib.suppress(OSError):  # no Linux, or no /proc: no cgroup limits this process
        for line in own.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                found.append((_V2, path))
            elif "memory" in controllers.split(","):
                found.append((_V1, path))
    return found


def _left_in(folder: Path, limit_file: str, used_file: str, cache_key: str, otherwise: int) -> int:
    """What a cgroup leaves, in bytes; `otherwise` if it has no limit, or is not to be seen from here."""
    try:
        limit = (folder / limit_file).read_text().strip()
        if limit == "max":
            return otherwise
        used = int((folder / used_file).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(limit) - used + int(stat.get(cache_key, 0))
    except (OSError, ValueError):
        return otherwise
