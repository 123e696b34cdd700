"""What the system and the cgroups of this process leave it, read from files that a test has written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from headway.executor import host_memory
from headway.executor.host_memory import available_bytes

SYSTEM = 10**12


@pytest.fixture(autouse=True)
def system(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(available=SYSTEM)
    monkeypatch.setattr(host_memory, "psutil", SimpleNamespace(virtual_memory=lambda: memory))


def written(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def available(tmp_path: Path, own: str) -> int:
    (tmp_path / "own").write_text(own)
    return available_bytes(tmp_path / "cgroup", tmp_path / "own")


def test_without_cgroups_it_is_what_the_system_has(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path / "absent") == SYSTEM
    assert available(tmp_path, "0::/a/b\n") == SYSTEM


def test_the_narrowest_limit_on_the_way_to_the_top_counts_and_file_pages_can_be_had_back(tmp_path: Path) -> None:
    top = tmp_path / "cgroup"
    written(top / "a", memory__max=1000, memory__current=900, memory__stat="anon 5\ninactive_file 100")
    written(top / "a" / "b", memory__max="max", memory__current=500, memory__stat="anon 5")
    assert available(tmp_path, "0::/a/b\n") == 200
    written(top / "a" / "b", memory__max=550)
    assert available(tmp_path, "0::/a/b\n") == 50
    written(top / "a" / "b", memory__max=400)
    assert available(tmp_path, "0::/a/b\n") == 0


def test_version_1_has_a_hierarchy_for_memory_and_no_limit_is_a_huge_one(tmp_path: Path) -> None:
    top = tmp_path / "cgroup" / "memory"
    stat = "total_inactive_file 0"
    written(top, memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=7, memory__stat=stat)
    assert available(tmp_path, "9:name=systemd:/\n4:memory:/elsewhere\n0::/\n") == SYSTEM
    written(top, memory__limit_in_bytes=3000)
    assert available(tmp_path, "9:name=systemd:/\n4:cpu,memory:/elsewhere\n0::/\n") == 2993
