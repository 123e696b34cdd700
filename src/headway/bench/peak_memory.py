"""The peak of a process's resident memory since a moment. Linux only."""

from __future__ import annotations

from pathlib import Path


class PeakMemory:
    """The peak since this object was made. pid: of a process of the same user.

    Each process has one such count: a new object for it ends the count of the one before.
    """

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        (self._folder / "clear_refs").write_text("5")  # the peak counts from now
        self._before = self._bytes("VmRSS")

    def growth(self) -> int:
        """How far the resident memory has risen above its size at the beginning, in bytes."""
        return self._bytes("VmHWM") - self._before

    def _bytes(self, name: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024


def largest_child(pid: int) -> int:
    """The child process with the most resident memory."""
    children = [
        child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return max(map(int, children), key=lambda child: int(Path(f"/proc/{child}/statm").read_text().split()[1]))
