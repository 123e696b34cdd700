"""`headway bench` has benchmarks of its own, and those of the laboratory where that is installed."""

import re
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from headway import bench
from headway.cli import main
from headway.commands import laboratory


def install(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> None:
    """Make these the only benchmarks that are found."""
    monkeypatch.setattr(laboratory, "entry_points", lambda group: EntryPoints(entries).select(group=group))


def measure(size: int = 1) -> None:
    """Measure something else."""
    print(f"measured {size}")


OTHER = EntryPoint("other", f"{__name__}:measure", bench.ENTRY_POINTS)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EntryPoint, "load", lambda entry: measure)
    install(monkeypatch, OTHER)


def test_without_the_laboratory_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch)
    assert main(["bench", "step", "--running", "2"]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1
    assert "no benchmark 'step' is installed (there are abuse, serve, soak, throughput, transfer)" in err
    assert "`make setup`" in err and "pip install ./lab" in err


def test_its_own_are_there_without_the_laboratory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch)
    assert main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"│ (\w+) ", out) == ["abuse", "serve", "soak", "throughput", "transfer"]


def test_a_command_is_found_by_its_entry_point(other: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "other", "--size", "3"]) == 0
    assert capsys.readouterr().out == "measured 3\n"
    assert main(["bench", "--help"]) == 0
    assert "Measure something else." in capsys.readouterr().out


def test_a_command_beside_the_benchmarks_is_found_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(EntryPoint, "load", lambda entry: measure)
    install(monkeypatch, EntryPoint("weigh", f"{__name__}:measure", "headway.commands"))
    assert main(["weigh", "--size", "4"]) == 0
    assert capsys.readouterr().out == "measured 4\n"
    assert main(["--help"]) == 0
    assert "Measure something else." in capsys.readouterr().out


def test_with_the_laboratory_an_unknown_name_is_just_that(other: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nothing"]) == 2
    assert "No such command 'nothing'" in capsys.readouterr().err


def test_nothing_of_headway_imports_the_laboratory() -> None:
    script = """
import pkgutil, sys
sys.modules["headway_lab"] = None
import headway
names = [module.name for module in pkgutil.walk_packages(headway.__path__, "headway.")]
for name in names:
    if not name.endswith("__main__") and "flashinfer" not in name and "decode_kernel" not in name:
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            if error.name.partition(".")[0] not in ("vllm", "fastdeploy", "ray"):  # code that runs inside these
                raise
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and int(done.stdout) > 100, done.stderr
