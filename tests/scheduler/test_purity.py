"""The core is a library without I/O, threads, clock or torch: what it may import is listed here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import headway

ROOT = Path(headway.__file__).parent
PURE = sorted([*(ROOT / "scheduler").glob("*.py"), *(ROOT / "kvcache").glob("*.py")])
ALLOWED = {
    "__future__", "bisect", "collections", "dataclasses", "enum", "heapq", "itertools", "math", "mmap", "numpy",
    "typing", "headway.config", "headway.kvcache", "headway.request", "headway.scheduler",
}  # fmt: skip


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", PURE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_pure_core_imports_nothing_else(path: Path) -> None:
    def is_allowed(name: str) -> bool:
        return any(name == allowed or name.startswith(allowed + ".") for allowed in ALLOWED)

    assert not {name for name in imported_modules(path) if not is_allowed(name)}


def test_kvcache_knows_nothing_of_requests_or_scheduling() -> None:
    for path in (ROOT / "kvcache").glob("*.py"):
        assert not {m for m in imported_modules(path) if m.startswith(("headway.scheduler", "headway.request"))}


def test_importing_the_core_brings_in_neither_torch_nor_any_io_library() -> None:
    code = "import headway.scheduler, sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "zmq", "fastapi", "msgspec", "asyncio"} & set(loaded)
