"""Shows that the tests can fail: puts one flaw after another back, and expects failing tests.

    python tools/mutants.py [NAME ...]          all mutants of tests/mutants, or the named ones

A mutant is a file NAME.toml:

    finding = "F2"                              # the flaw that it brings back; its tests have the same name
    mutation = "A finish frees the slot."       # the change, in words
    red = ["tests/findings/test_x.py::test_y"]  # tests that must fail then, with or without parameters

    [[edit]]                                    # one or more
    in = "Scheduler._end_all"
    old = 'self._state.end_all(entries.values(), reason)'
    new = 'self._state.end_all(decoding, reason)'

`in` names a place: a function, a class, a method or a name that is assigned, with the classes around it but without its
file, so that code moves freely. Only where two places share a name, the module comes before it: "decoding.candidates".
`old` is an expression, consecutive whole statements, or the expression of a decorator. The place contains it exactly
once, by syntax tree: line breaks and comments do not matter. `new` replaces it and may be empty; imports that `new`
needs stand in `new`. Without `old`, the whole place is replaced. All other text stays, byte for byte.

A move of code within src/ changes nothing here. A name that changes in src/ changes in tests/mutants by the same
substitution of text: `grep -rlw OLD src tests | xargs sed -i "s/\\bOLD\\b/NEW/g"` is enough.

Tests run in a copy of src/ and tests/, and import that copy; the tree itself never changes. The tests must pass in the
unchanged copy, as a failure would prove nothing otherwise. A test that hangs is stopped, and counts as failed.

Exit status: 0 if every named test of every mutant failed; 1 if a mutant lives, does not apply or cannot be imported, or
if a test fails without any mutant; 2 if there is no mutant of a given name.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS_PER_TEST = 15  # the named tests take a second or two
SECONDS_PER_MUTANT = 90  # for tests that hang without heeding their own time limit

_Code = ast.expr | ast.stmt


@cache
def _tree(code: str | bytes) -> ast.Module:
    """Parse Python code. Raises ValueError, in one line, if it is not Python."""
    try:
        return ast.parse(code)
    except SyntaxError as error:
        raise ValueError(f"no Python: {error.msg}, line {error.lineno}: {(error.text or '').strip()}") from error


def _definitions(scope: ast.AST, around: str = "") -> Iterator[tuple[str, ast.stmt]]:
    """The definitions in a module, class or function, with dotted names."""
    for node in getattr(scope, "body", ()):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield around + name, node
                yield from _definitions(node, f"{around}{name}.")
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield around + name, node


def _expressions(node: ast.AST, wanted: ast.expr) -> Iterator[tuple[_Code, _Code]]:
    """Every occurrence of an expression in a node, as (first, last) with first = last."""
    if isinstance(node, ast.expr) and ast.dump(node) == ast.dump(wanted):
        yield node, node
    elif not isinstance(node, ast.JoinedStr):  # Python 3.11 does not say where things stand in an f-string
        for child in ast.iter_child_nodes(node):
            yield from _expressions(child, wanted)


def _runs(place: ast.stmt, wanted: Sequence[ast.stmt], source: bytes) -> Iterator[tuple[_Code, _Code]]:
    """Every occurrence of consecutive statements in a place: (first, last)."""
    lists = [value for node in ast.walk(place) for _, value in ast.iter_fields(node) if isinstance(value, list)]
    dumps = [ast.dump(node) for node in wanted]
    for nodes in ([place], *lists):
        for at in range(len(nodes) - len(wanted) + 1):
            run = nodes[at : at + len(wanted)]
            same = run and [ast.dump(node) for node in run if isinstance(node, ast.stmt)] == dumps
            # An `elif` is an `if` in the tree, but what replaces it could not be one in the text.
            if same and not source.startswith(b"elif", _span(source, run[0], run[-1])[0]):
                yield run[0], run[-1]


def _span(source: bytes, first: _Code, last: _Code) -> tuple[int, int]:
    """The start and end of code in bytes, decorators included."""
    lines = list(accumulate(map(len, source.splitlines(keepends=True)), initial=0))
    line = min(node.lineno for node in (first, *getattr(first, "decorator_list", ())))
    assert last.end_lineno is not None and last.end_col_offset is not None
    return lines[line - 1] + first.col_offset, lines[last.end_lineno - 1] + last.end_col_offset


@dataclass(frozen=True)
class Edit:
    """A replacement of code. place: a dotted name. old: None for the whole place."""

    place: str
    old: str | None
    new: str

    def find(self, sources: Mapping[Path, bytes]) -> tuple[Path, ast.stmt]:
        """The place. Raises ValueError unless there is one; sources: paths relative to the root of imports."""
        found = []
        for path, source in sources.items():
            module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
            if not all(part.encode() in source or part in module for part in self.place.split(".")):
                continue  # searching text is fast, parsing is slow
            for name, node in _definitions(_tree(source)):
                if f".{self.place}".endswith(f".{name}") and f".{module}.{name}".endswith(f".{self.place}"):
                    found.append((path, node, f"{module}.{name}"))
        if not found:
            raise ValueError("no such place")
        if len(found) > 1:
            raise ValueError(f"{len(found)} places have this name: {', '.join(name for _, _, name in found)}")
        return found[0][:2]

    def applied(self, source: bytes, place: ast.stmt) -> bytes:
        """A file's text with the edit; place: a node of it. Raises ValueError if `old` is not there exactly once."""
        new = textwrap.dedent(self.new).strip()
        old = [place] if self.old is None else _tree(textwrap.dedent(self.old).strip()).body
        match old, _tree(new).body:
            case [ast.Expr(wanted)], [ast.Expr()]:
                found = list(_expressions(place, wanted))
                new = f"({new})"
            case _:
                found = list(_runs(place, old, source))
        if len(found) != 1:
            raise ValueError(f"`old` stands there {len(found)} times, not once: {' '.join((self.old or '').split())}")
        first, last = found[0]
        begin, end = _span(source, first, last)
        indent = first.col_offset if isinstance(first, ast.stmt) else 0
        mutated = source[:begin] + textwrap.indent(new, " " * indent)[indent:].encode() + source[end:]
        _tree(mutated)
        return mutated


@dataclass(frozen=True)
class Mutant:
    """One file of tests/mutants. tests: node ids; for a node id without parameters at least one case must fail."""

    name: str
    finding: str
    mutation: str
    tests: tuple[str, ...]
    edits: tuple[Edit, ...]

    @classmethod
    def read(cls, file: Path) -> Mutant:
        """Read a file. Raises ValueError if a key is missing or unknown."""
        said = tomllib.loads(file.read_text())
        edits = said.get("edit", [])
        if said.keys() != {"finding", "mutation", "red", "edit"} or not said["red"] or not edits:
            raise ValueError(f"{file.name} must say finding, mutation, red and at least one [[edit]]")
        if not all({"in", "new"} <= edit.keys() <= {"in", "old", "new"} for edit in edits):
            raise ValueError(f"{file.name}: each [[edit]] must say in, old (if not all of the place) and new")
        made = tuple(Edit(edit["in"], edit.get("old"), edit["new"]) for edit in edits)
        return cls(file.stem, said["finding"], said["mutation"], tuple(said["red"]), made)

    def changed(self, root: Path) -> dict[Path, bytes]:
        """The changed files under `root`, where imports begin. Raises ValueError if an edit does not apply."""
        sources = {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*.py"))}
        changed: dict[Path, bytes] = {}
        for edit in self.edits:
            try:
                path, place = edit.find(sources | changed)
                changed[path] = edit.applied((sources | changed)[path], place)
            except ValueError as error:
                raise ValueError(f"{edit.place}: {error}") from error
        return {root / path: source for path, source in changed.items()}


def read_all(folder: Path) -> list[Mutant]:
    """The mutants of a folder by name."""
    return [Mutant.read(file) for file in sorted(folder.glob("*.toml"))]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a test run. error: the reason why it did not run. failed: node id -> error message."""

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
        # Without the variables of git hooks and of coverage: both point to another folder.
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
        """Copy the files that tests need, with up-to-date compiled files."""
        for part in ("src", "tests"):
            shutil.copytree(root / part, folder / part)
        shutil.copy2(root / "pyproject.toml", folder)
        return cls(folder)

    def imported_from(self, package: str) -> Path:
        """The path from which tests in this copy import a package."""
        command = [sys.executable, "-c", f"import {package}; print({package}.__file__)"]
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=True
        )
        return Path(done.stdout.strip()).resolve()

    def apply(self, mutant: Mutant) -> None:
        """Change the copy. Raises ValueError if the mutant does not apply."""
        for path, source in mutant.changed(self.folder / "src").items():
            path.write_bytes(source)
            for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
                compiled.unlink()

    def test(self, tests: Iterable[str], seconds: float) -> Outcome:
        """Run these tests, for at most `seconds`."""
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
            "-p",
            "pytest_asyncio.plugin",
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
    """killed: every named test failed. text: the outcome in a few words."""

    mutant: Mutant
    killed: bool
    text: str
    seconds: float


def try_out(mutant: Mutant, base: Copy) -> Verdict:
    """Run a mutant's tests in a new copy of `base` with the mutant applied."""
    began = time.monotonic()

    def verdict(killed: bool, text: str) -> Verdict:
        return Verdict(mutant, killed, text, time.monotonic() - began)

    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Copy.of(base.folder, Path(folder))
        try:
            copy.apply(mutant)
        except ValueError as error:
            return verdict(False, f"DOES NOT APPLY: {error}")
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
    """Try all mutants, `jobs` at a time, and print a table. Returns the exit status."""
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
    mutants = read_all(ROOT / "tests" / "mutants")
    unknown = set(args.names) - {mutant.name for mutant in mutants}
    if unknown or not mutants:
        print(f"no such mutant: {', '.join(sorted(unknown)) or '(none at all)'}", file=sys.stderr)
        return 2
    return run(ROOT, [mutant for mutant in mutants if not args.names or mutant.name in args.names], args.jobs)


if __name__ == "__main__":
    sys.exit(main())
