"""docs/cases.md: every case has its tests or a page, and what it names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = (ROOT / "docs" / "cases.md").read_text(encoding="utf-8")
ROWS = [
    line.strip().strip("|").split(" | ")
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.startswith("| | case")
]
TESTS = sorted(set(re.findall(r"`((?:tests|docs)/[^`]+)`", TABLE)))


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def functions_of(tree: ast.Module) -> Iterator[str]:
    """The functions of a module, and of its classes as Class::function."""
    for node in tree.body:
        for part in node.body if isinstance(node, ast.ClassDef) else (node,):
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{node.name}::{part.name}" if isinstance(node, ast.ClassDef) else part.name


def missing(test: str, root: Path = ROOT) -> str | None:
    """What of a named test is not there: its file, its function, or the case in brackets."""
    name, _, function = test.partition("::")
    file = root / name
    if not file.is_file():
        return f"{name} is not there"
    if not function:
        return None
    function, _, case = function.partition("[")
    tree = parsed(file)
    if function not in functions_of(tree):
        return f"{name} has no {function}"
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return f"{test} has no such case" if case and case.removesuffix("]") not in texts else None


def test_every_named_test_exists() -> None:
    assert TESTS and [what for test in TESTS if (what := missing(test)) is not None] == []


def test_every_row_has_a_case_what_is_right_and_tests() -> None:
    for row in ROWS:
        assert len(row) == 4, row
        _, case, right, tests = (part.strip() for part in row)
        assert case and right, row
        assert re.fullmatch(r"(`(tests/[^`]+\.py(::[^`]+)?|docs/[^`]+\.md)` ?)+", tests), row


def test_every_list_of_cases_is_there() -> None:
    first = [row[0].strip() for row in ROWS]
    wanted = [*(f"C{i}" for i in range(1, 8)), *(f"D{i}" for i in range(1, 7)), "P1", *(f"T{i}" for i in range(1, 8))]
    wanted += [f"U{i}" for i in range(1, 10)]
    assert set(wanted) | {"S1", "S2", "S3", "M", "G1", "G2", "G3", "K6", "K9"} <= set(first)


def test_what_is_not_there_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text("CASES = ['good']\nclass TestA:\n    async def test_b(self): ...\n")
    assert missing("test_x.py::TestA::test_b[good]", tmp_path) is None
    assert missing("test_x.py::TestA::test_b[bad]", tmp_path) == "test_x.py::TestA::test_b[bad] has no such case"
    assert missing("test_x.py::test_b", tmp_path) == "test_x.py has no test_b"
    assert missing("test_y.py", tmp_path) == "test_y.py is not there"
