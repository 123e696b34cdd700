"""Shows that the tests can fail: brings one flaw after another back, and expects red.

    python tools/mutants.py [NAME ...]          all mutants of tests/mutants, or those named

A mutant is a patch against src/ that begins with

    Finding: F2                                 what it brings back, as the tests are named after
    Mutation: a finish frees the slot at once   how
    Red: tests/findings/test_x.py::test_y       a test that must fail then, with or without parameters; any number

Tests run in a copy of src/ and tests/, so the tree is never touched and the copy is what is imported; they must pass
there before anything is changed, else red would prove nothing. A test that hangs is red too: it is stopped.

Exit status: 0 if every named test of every mutant failed; 1 if a mutant lives, does not apply, cannot be imported, or
the tests are red without any; 2 if there is nothing to run with.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS_PER_TEST = 15  # the named tests take a second or two
SECONDS_PER_MUTANT = 90  # for what cannot be interrupted from within

_HEADER = re.compile(r"^(Finding|Mutation|Red): (\S.*)$")
_TARGET = re.compile(r"^\+\+\+ b/(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """One patch. tests: node ids; of one without parameters at least one case must fail."""

    name: str
    patch: Path
    finding: str
    mutation: str
    tests: tuple[str, ...]
    files: tuple[str, ...]

    @classmethod
    def read(cls, patch: Path) -> Mutant:
        """Raises ValueError if the head says less than it must."""
        text = patch.read_text()
        head, _, _ = text.partition("\n--- ")
        said: dict[str, list[str]] = {"Finding": [], "Mutation": [], "Red": []}
        for line in head.splitlines():
            if match := _HEADER.match(line):
                said[match[1]].append(match[2])
        files = tuple(_TARGET.findall(text))
        if len(said["Finding"]) != 1 or len(said["Mutation"]) != 1 or not said["Red"] or not files:
            raise ValueError(f"{patch.name} must say one Finding, one Mutation, at least one Red, and have a diff")
        return cls(patch.stem, patch, said["Finding"][0], said["Mutation"][0], tuple(said["Red"]), files)


def read_all(folder: Path) -> list[Mutant]:
    """The mutants of a folder by name."""
    return [Mutant.read(patch) for patch in sorted(folder.glob("*.patch"))]


@dataclass(frozen=True)
class Outcome:
    """What came of a test run. error: why there was none. failed: node id -> what it failed with."""

    failed: Mapping[str, str] = field(default_factory=dict)
    hung: bool = False
    error: str | None = None

    def red(self, test: str) -> list[str]:
        """The cases of a test that failed."""
        return [failed for failed in self.failed if failed == test or failed.startswith(test + "[")]


class Copy:
    """src/ and tests/ in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Without what git says to its hooks, and coverage to the processes that it measures: both mean another folder.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "COV_", "COVERAGE_"))}
        self._environment = kept | {
            "PYTHONPATH": str(folder / "src"),  # comes before what is installed
            "GIT_CEILING_DIRECTORIES": str(folder.parent),
            "OMP_NUM_THREADS": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # halves the time that a run takes to begin,
            "PYTHONDONTWRITEBYTECODE": "",  # as does compiling once
            "COLUMNS": "250",
        }

    @classmethod
    def of(cls, root: Path, folder: Path) -> Copy:
        """Copy what tests need; compiled files too, where they are up to date."""
        for part in ("src", "tests"):
            shutil.copytree(root / part, folder / part)
        shutil.copy2(root / "pyproject.toml", folder)
        return cls(folder)

    def imported_from(self, package: str) -> Path:
        """Where a package is taken from when tests run here."""
        command = [sys.executable, "-c", f"import {package}; print({package}.__file__)"]
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=True
        )
        return Path(done.stdout.strip()).resolve()

    def apply(self, mutant: Mutant, *, check_only: bool = False) -> str | None:
        """Change the copy. Returns why it cannot be, in one line, or None."""
        command = ["git", "apply", "-C1", "--whitespace=nowarn", *(["--check"] if check_only else [])]
        done = subprocess.run(
            [*command, mutant.patch.resolve()], cwd=self.folder, env=self._environment, capture_output=True, text=True
        )
        for file in mutant.files:
            path = self.folder / file
            for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
                compiled.unlink()
        return " ".join(done.stderr.split()) or "git apply failed" if done.returncode else None

    def test(self, tests: Iterable[str], seconds: float) -> Outcome:
        """Run these tests, in at most so many seconds."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--tb=no",
            "-rfE",
            "-p",
            "no:cacheprovider",
            "-p",
            "pytest_timeout",
        ]
        process = subprocess.Popen(
            [*command, f"--timeout={SECONDS_PER_TEST}", *tests],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Outcome(dict.fromkeys(tests, "hung"), hung=True)
        if process.returncode not in (0, 1):
            return Outcome(error=f"pytest exited with {process.returncode}: {output.strip()[-1000:]}")
        failed = dict(re.findall(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - (.*))?$", output, re.MULTILINE))
        return Outcome(failed, hung="pytest-timeout" in output)


@dataclass(frozen=True)
class Verdict:
    """killed: every named test failed. text: how it went, in a few words."""

    mutant: Mutant
    killed: bool
    text: str
    seconds: float


def try_out(mutant: Mutant, base: Copy) -> Verdict:
    """Run a mutant's tests in a copy of the copy that has it."""
    began = time.monotonic()

    def verdict(killed: bool, text: str) -> Verdict:
        return Verdict(mutant, killed, text, time.monotonic() - began)

    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Copy.of(base.folder, Path(folder))
        refused = copy.apply(mutant)
        if refused is not None:
            return verdict(False, f"DOES NOT APPLY: {refused}")
        outcome = copy.test(mutant.tests, SECONDS_PER_MUTANT)
    if outcome.error is not None:
        return verdict(False, f"CANNOT BE TESTED: {outcome.error}")
    green = [test for test in mutant.tests if not outcome.red(test)]
    if green:
        return verdict(False, f"LIVES: still green: {', '.join(green)}")
    if outcome.hung:
        return verdict(True, "killed: it hung, and was stopped")
    return verdict(True, f"killed: {outcome.failed[outcome.red(mutant.tests[0])[0]]:.80}")


def run(root: Path, mutants: Sequence[Mutant], jobs: int, package: str = "headway") -> int:
    """Try all of them, so many at a time, and print a table. Returns the exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        base = Copy.of(root, Path(folder))
        found = base.imported_from(package)
        if not found.is_relative_to(base.folder.resolve()):
            print(f"{package} is imported from {found}, not from the copy: nothing could be shown", file=sys.stderr)
            return 1
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        outcome = base.test(tests, 60 + SECONDS_PER_MUTANT)
        if outcome.error is not None or outcome.failed:
            print(f"red without any mutant: {outcome.error or ', '.join(sorted(outcome.failed))}", file=sys.stderr)
            return 1
        print(f"{len(tests)} tests are green without a mutant ({time.monotonic() - began:.0f} s)\n")
        width = max(len(mutant.name) for mutant in mutants)
        failed = []
        with ThreadPoolExecutor(jobs) as pool:
            for verdict in pool.map(lambda mutant: try_out(mutant, base), mutants):
                print(f"{verdict.mutant.name:{width}}  {verdict.seconds:5.1f} s  {verdict.text}", flush=True)
                if not verdict.killed:
                    failed.append(verdict.mutant.name)
    print(f"\n{len(mutants) - len(failed)} of {len(mutants)} mutants killed, {time.monotonic() - began:.0f} s")
    if failed:
        print(f"not killed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Bring flaws back and expect the tests to fail.")
    parser.add_argument("names", nargs="*", help="mutants to try; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    args = parser.parse_args(argv)
    if shutil.which("git") is None:
        print("mutants are applied with git, which is not installed", file=sys.stderr)
        return 2
    mutants = read_all(ROOT / "tests" / "mutants")
    unknown = set(args.names) - {mutant.name for mutant in mutants}
    if unknown or not mutants:
        print(f"no such mutant: {', '.join(sorted(unknown)) or '(none at all)'}", file=sys.stderr)
        return 2
    return run(ROOT, [mutant for mutant in mutants if not args.names or mutant.name in args.names], args.jobs)


if __name__ == "__main__":
    sys.exit(main())
