"""KV memory that a peer can map, and that leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headway.transfer.memory import KVMemory, MemoryHandle, PeerMemory
from headway.transfer.model_digest import model_digest
from tests.transfer.rig import layout, memory

HOLDER = """
import json, sys
from headway.transfer.layout import KVLayout, LayerSizes
from headway.transfer.memory import KVMemory
import msgspec
memory = KVMemory(msgspec.json.decode(sys.argv[1], type=KVLayout))
for part in memory.parts:
    part[:] = 77
handle = memory.handle()
print(json.dumps([handle.pid, handle.fd, handle.name]), flush=True)
sys.stdin.read()
"""


def leftovers() -> set[str]:
    """What stands in the folders where memory and temporary files are."""
    return {str(path) for folder in ("/dev/shm", "/tmp") for path in Path(folder).glob("*headway-kv*")}


def test_memory_starts_as_zeros_and_a_peer_sees_what_is_written() -> None:
    made = KVMemory(layout())
    assert not any(part.any() for part in made.parts)
    peer = PeerMemory(made.handle(), made.layout)
    made.parts[1][3] = 9
    assert (peer.parts[1][3] == 9).all() and not peer.parts[1][4].any()
    with pytest.raises(ValueError, match="read-only"):
        peer.parts[1][3] = 1


def test_a_process_that_is_killed_leaves_nothing_and_its_peer_goes_on_to_read() -> None:
    import msgspec

    before = leftovers()
    sizes = layout()
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, msgspec.json.encode(sizes).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdin is not None
    handle = MemoryHandle(*msgspec.json.decode(child.stdout.readline()))
    peer = PeerMemory(handle, sizes)
    assert leftovers() == before
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert leftovers() == before
    assert all((part == 77).all() for part in peer.parts)
    with pytest.raises(OSError):
        PeerMemory(handle, sizes)


@pytest.mark.parametrize("name", ["headway-kv-other", "other", "headway-kv-../../x"])
def test_a_handle_with_another_name_opens_nothing(name: str) -> None:
    made = memory(1)
    with pytest.raises(OSError, match="is not the KV memory"):
        PeerMemory(made.handle().__class__(os.getpid(), made.handle().fd, name), made.layout)


def test_a_handle_that_names_a_file_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    with path.open("rb") as file, pytest.raises(OSError, match="is not the KV memory"):
        PeerMemory(MemoryHandle(os.getpid(), file.fileno(), f"headway-kv-{'0' * 32}"), layout())


def test_a_handle_of_a_closed_memory_opens_nothing() -> None:
    made = memory(1)
    handle = made.handle()
    made.close()
    made.close()
    with pytest.raises(OSError):
        PeerMemory(handle, made.layout)


def test_a_memory_of_another_size_is_refused_and_its_size_is_sealed() -> None:
    made = memory(1)
    with pytest.raises(OSError, match="were to be sealed"):
        PeerMemory(made.handle(), layout(1000))
    with pytest.raises(PermissionError):
        os.ftruncate(made.handle().fd, 4096)
    peer = PeerMemory(made.handle(), made.layout)
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(made.parts, peer.parts, strict=True))
    peer.close()
    assert not peer.parts


def test_models_are_told_apart_by_contents_names_and_sizes(tmp_path: Path) -> None:
    folders = []
    for index in range(3):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        weights = np.random.default_rng(0).integers(0, 256, 3 * 2**20, np.uint8)
        if index == 1:
            weights = weights + 1  # other weights differ everywhere
        (folder / "weights").write_bytes(weights.tobytes())
        folders.append(sorted(folder.iterdir()))
    first, other, same = (model_digest(files) for files in folders)
    assert first == same != other
    assert model_digest(reversed(folders[0])) == first
    (folders[0][0]).write_text("{ }")
    assert model_digest(folders[0]) != first
