"""`make mutants`: there is a test and a mutant for everything that was found, each mutant applies, and the tool that
runs them can itself say no. That the mutants are killed is shown by `make mutants` alone."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tools import mutants
from tools.mutants import ROOT, Copy, Edit, Mutant, read_all

MUTANTS = read_all(ROOT / "tests" / "mutants")
TESTS = ROOT / "tests" / "findings"

# Everything that was found, by the name that its tests (`test_NAME_...`) and its mutants go by.
FINDINGS = {
    "F1": "a query can block for ever",
    "F2": "the slot is freed before the message is applied, and the late message clears the newcomer's",
    "F3": "one manager copies another's logic",
    "F4": "the same switch is checked in several places at run time",
    "prefill_schedule": "the default manager has none",
    "flaw_01": "the deque of the lock-free manager is guarded by a lock",
    "flaw_02": "a query costs a scheduling period",
    "flaw_03": "an exception in a handler blocks who asked, or loses the request",
    "flaw_04": "the drain is unbounded, a finish costs O(running + blocks)",
    "flaw_05": "finishing who waits raises, finishing who was preempted gives two requests one slot",
    "flaw_06": "storage and hashing run on the scheduling thread",
    "flaw_07": "query ids collide, results of those who left are kept for ever",
    "flaw_08": "some operations change state past the queue, live state is read without order",
    "flaw_09": "counts are stale, and too much work is fetched",
    "flaw_10": "payloads stay shared and mutable; there is no shutdown",
    "flaw_11": "a pass costs O(running + blocks) even when nothing happens",
    "v1_abort": "aborts take effect at a decode visit alone",
    "v1_stale_abort": "abort markers for unknown ids stay, and kill a later request",
    "v1_preprocessing": "unfinished preprocessing sends a request to the tail",
    "v1_head_of_line": "one that does not fit blocks all behind it",
    "v1_preempted": "who is preempted keeps its slot, so that priorities cannot displace, and loses its place",
    "v1_victim_on_d": "a victim on D is thrown out with an error",
    "v1_deterministic": "deterministic mode waits for ever",
    "v1_reservation": "a reservation of D has no timeout",
    "v1_has_resource": "has_resource is a look before an act",
    "v1_d_queries": "D takes one request a step",
}


@cache
def functions_of(path: Path) -> set[str]:
    """The tests of a file, those in classes as Class::test."""
    found, function = set(), ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{part.name}" for part in node.body if isinstance(part, function)}
        elif isinstance(node, function):
            found.add(node.name)
    return found


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_applies_to_the_present_tree(mutant: Mutant) -> None:
    changed = mutant.changed(ROOT / "src")
    assert changed
    for path, source in changed.items():
        assert path.is_relative_to(ROOT / "src" / "headway")
        assert ast.dump(ast.parse(source)) != ast.dump(ast.parse(path.read_bytes())), "it changes nothing"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_names_tests_that_exist_and_what_it_brings_back(mutant: Mutant) -> None:
    assert mutant.finding in FINDINGS or mutant.finding == "invariant"
    assert mutant.finding == "invariant" or mutant.name.startswith(mutant.finding)
    for test in mutant.tests:
        file, _, function = test.partition("::")
        assert function.partition("[")[0] in functions_of(ROOT / file)


@pytest.mark.parametrize("finding", FINDINGS)
def test_everything_that_was_found_has_a_test_and_a_mutant_that_it_kills(finding: str) -> None:
    named = {name for path in TESTS.glob("test_*.py") for name in functions_of(path) if f"test_{finding}_" in name}
    assert named
    killed_by = {test for mutant in MUTANTS if mutant.finding == finding for test in mutant.tests}
    assert any(f"::test_{finding}_" in test for test in killed_by)


@pytest.mark.parametrize("path", sorted(TESTS.glob("test_*.py")), ids=lambda path: path.name)
def test_every_test_there_is_killed_by_a_mutant(path: Path) -> None:
    """So each of them can fail. Not counted: two tests that a list is complete, and one of the tests' own means."""
    own = {
        "test_F1_the_queries_here_are_all_there_are",
        "test_these_are_all_that_a_caller_can_do",
        "test_flaw_01_a_lock_is_seen_wherever_it_hides",
    }
    killed = {test.partition("[")[0] for mutant in MUTANTS for test in mutant.tests}
    tests = {name for name in functions_of(path) if name.startswith("test_")} - own
    assert not {name for name in tests if f"{path.relative_to(ROOT)}::{name}" not in killed}


# -- what runs them ----------------------------------------------------------------------------------------------

MODULE = """\
LIMIT = 3


def double(number: int) -> int:
    return 2 * number
"""
TEST = """\
import time
import pytest
import headway


@pytest.mark.parametrize("number", [0, 1])
def test_double(number):
    assert headway.double(number) == 2 * number


def test_limit():
    assert headway.LIMIT == 3


def test_limit_in_time():
    time.sleep(0 if headway.LIMIT == 3 else 60)
"""


class Project:
    """A little one of the same name, so that what is installed could be imported by mistake."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for file, text in {
            "src/headway/__init__.py": MODULE,
            "tests/test_it.py": TEST,
            "pyproject.toml": "[tool.pytest.ini_options]\n",
        }.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text)

    def mutant(self, name: str, old: str, new: str, *tests: str) -> Mutant:
        red = [f"tests/test_it.py::{test}" for test in tests]
        file = self.root / f"{name}.toml"
        file.write_text(
            f"finding = 'F1'\nmutation = 'none'\nred = {red}\n[[edit]]\nin = 'LIMIT'\nold = '{old}'\nnew = '{new}'\n"
        )
        return Mutant.read(file)

    def run(self, *made: Mutant) -> int:
        return mutants.run(self.root, made, jobs=2)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_mutants_whose_tests_all_fail_are_killed(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a failure or by a hang; and the tree is as it was."""
    monkeypatch.setattr(mutants, "SECONDS_PER_TEST", 2)
    limit = project.mutant("limit", "LIMIT = 3", "LIMIT = 4", "test_limit")
    assert project.run(limit, project.mutant("hangs", "LIMIT = 3", "LIMIT = 4", "test_limit_in_time")) == 0
    out = capsys.readouterr().out
    assert "2 tests are green without a mutant" in out and "2 of 2 mutants killed" in out
    assert "killed: assert 4 == 3" in out and "killed: it hung, and was stopped" in out
    assert (project.root / "src/headway/__init__.py").read_text() == MODULE


def test_a_mutant_that_lives_or_does_not_fit_is_named(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """It lives as soon as one of its tests is green."""
    killed = project.mutant("killed", "LIMIT = 3", "LIMIT = 4", "test_limit")
    lives = project.mutant("lives", "LIMIT = 3", "LIMIT = 4", "test_double[1]", "test_limit")
    stale = project.mutant("stale", "LIMIT = 7", "LIMIT = 4", "test_limit")
    broken = project.mutant("broken", "LIMIT = 3", "LIMIT = LIMITS", "test_limit")
    assert project.run(killed, lives, stale, broken) == 1
    out, err = capsys.readouterr()
    assert "1 of 4 mutants killed" in out and "LIVES: still green: tests/test_it.py::test_double[1]" in out
    assert "DOES NOT APPLY: LIMIT: `old` stands there 0 times" in out and "CANNOT BE TESTED" in out
    assert err == "not killed: lives, stale, broken\n"


def test_tests_that_are_red_anyway_show_nothing(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    (project.root / "tests/test_it.py").write_text(TEST.replace("== 3", "== 5"))
    assert project.run(project.mutant("limit", "LIMIT = 3", "LIMIT = 4", "test_limit")) == 1
    assert capsys.readouterr().err == "red without any mutant: tests/test_it.py::test_limit\n"


def test_the_copy_is_what_is_imported(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    made = project.mutant("limit", "LIMIT = 3", "LIMIT = 4", "test_limit")
    assert Copy.of(ROOT, project.root / "all").imported_from("headway").is_relative_to(project.root)
    assert mutants.run(project.root, [made], jobs=1, package="json") == 1
    assert "not from the copy: nothing could be shown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finding = 'F1'", "must say finding, mutation, red and at least one"),
        ("finding = 'F1'\nmutation = ''\nred = ['x']\n[[edit]]\nin = 'x'\n", "must say in, old .* and new"),
    ],
)
def test_a_mutant_must_say_what_it_is(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "silent.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"silent\.toml:? .*{message}"):
        Mutant.read(file)


def test_a_name_that_is_none_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutants.main(["F9_unknown"]) == 2
    assert capsys.readouterr().err == "no such mutant: F9_unknown\n"


# -- how an edit is placed ---------------------------------------------------------------------------------------

LIGHT = """\
# A lamp, in a file that can move.
GLOW = {"low": 1, "high": 2}  # watts


class Lamp:
    @cached(size=3)
    def switch(self, on: bool) -> str:
        \"\"\"Turns it on.\"\"\"
        if not on and self.lit:  # ä: two bytes
            self.dim()
            self.lit = False
        elif on:
            self.dim()
        return f"{self.name} is {on}"

    def dim(self) -> None:
        self.watts = self.step(
            1,  # down
            2,
        )
"""
OTHER = """\
class Lamp:
    pass


def lit() -> bool:
    return True
"""


def edited(root: Path, *edits: Edit) -> str:
    """The text of LIGHT after them."""
    for file, text in {"house/light.py": LIGHT, "house/other.py": OTHER}.items():
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(text)
    changed = Mutant("", "", "", (), edits).changed(root)
    assert list(changed) == [root / "house/light.py"]
    return changed[root / "house/light.py"].decode()


@pytest.mark.parametrize(
    ("place", "old", "new", "was", "becomes"),
    [
        ("Lamp.switch", "on and self.lit", "", None, None),
        ("Lamp.switch", "self.lit", "on or self.lit", "and self.lit:", "and (on or self.lit):"),
        ("Lamp.switch", "cached(size = 3)", "cached()", "@cached(size=3)", "@(cached())"),
        ("Lamp.dim", "self.step(1, 2)", "0", "self.step(\n            1,  # down\n            2,\n        )", "(0)"),
        ("GLOW", "1", "3", '"low": 1', '"low": (3)'),
        ("GLOW", None, "import os\nGLOW = os", 'GLOW = {"low": 1, "high": 2}', "import os\nGLOW = os"),
        ("Lamp.switch", "self.lit = False", "", "self.lit = False", ""),
        (
            "Lamp.switch",
            "self.dim()\nself.lit = False",
            "if on:\n\n    self.dim()",
            "self.dim()\n            self.lit = False",
            "if on:\n\n                self.dim()",
        ),
        (
            "light.Lamp.switch",
            None,
            "switch = None",
            LIGHT[LIGHT.index("@cached") : LIGHT.index("\n\n    def dim")],
            "switch = None",
        ),
        ("house.light.GLOW", "2", "4", "2}", "(4)}"),
    ],
)
def test_an_edit_replaces_what_it_names_and_no_other_byte(
    tmp_path: Path, place: str, old: str | None, new: str, was: str | None, becomes: str | None
) -> None:
    """An expression, statements, a decorator, a whole place."""
    if was is None:
        with pytest.raises(ValueError, match="stands there 0 times"):  # an expression is no statement
            edited(tmp_path, Edit(place, old, new))
        return
    assert LIGHT.count(was) == 1 and becomes is not None
    assert edited(tmp_path, Edit(place, old, new)) == LIGHT.replace(was, becomes)


def test_edits_of_one_file_add_up(tmp_path: Path) -> None:
    text = edited(tmp_path, Edit("GLOW", "1", "3"), Edit("GLOW", "2", "3"))
    assert text == LIGHT.replace('"low": 1, "high": 2', '"low": (3), "high": (3)')


@pytest.mark.parametrize(
    ("place", "old", "new", "message"),
    [
        ("Lamp.glow", "x", "y", "Lamp.glow: no such place"),
        ("switch", "x", "y", "switch: no such place"),  # the class is part of the name
        ("elsewhere.GLOW", "1", "3", "elsewhere.GLOW: no such place"),
        ("Lamp", "x", "y", "Lamp: 2 places have this name: house.light.Lamp, house.other.Lamp"),
        ("Lamp.switch", "self.dim()", "0", "Lamp.switch: `old` stands there 2 times, not once: self.dim()"),
        ("Lamp.switch", "self.dim()", "", "Lamp.switch: `old` stands there 2 times, not once: self.dim()"),
        ("Lamp.dim", "self.lit\n", "0", "Lamp.dim: `old` stands there 0 times, not once: self.lit"),
        ("Lamp.switch", "if on:\n    self.dim()", "pass", "Lamp.switch: `old` stands there 0 times"),  # an elif
        ("Lamp.switch", "self.name", "0", "Lamp.switch: `old` stands there 0 times"),  # within an f-string
        ("Lamp.switch", "", "pass", "Lamp.switch: `old` stands there 0 times"),
        ("Lamp.switch", "if", "pass", "Lamp.switch: no Python: invalid syntax, line 1: if"),
        ("Lamp.dim", "self.watts = self.step(1, 2)", "", "Lamp.dim: no Python: expected an indented block"),
    ],
)
def test_an_edit_that_does_not_apply_says_why_in_one_line(
    tmp_path: Path, place: str, old: str, new: str, message: str
) -> None:
    with pytest.raises(ValueError) as refused:
        edited(tmp_path, Edit(place, old, new))
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
