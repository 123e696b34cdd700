"""The core is a library without I/O, threads, clock or torch. Contracts in `pyproject.toml` hold its imports."""

import subprocess
import sys


def test_importing_the_core_brings_in_neither_torch_nor_any_io_library() -> None:
    code = "import headway.scheduler, sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "zmq", "fastapi", "msgspec", "asyncio"} & set(loaded)
