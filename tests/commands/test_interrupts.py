"""Ctrl-C always ends a command."""

from __future__ import annotations

import ast
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headway import __main__, cli
from headway.commands.interrupts import Interrupts
from headway.simulation import simulate

ROOT = Path(__file__).resolve().parents[2]


def swallowed_interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt):  # as numpy does in some of its looks at an object
        signal.raise_signal(signal.SIGINT)


def test_simtest_ends_by_an_interrupt_that_numpy_swallowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_seed, seeds = simulate.run_seed, []

    def interrupted(seed: int, *rest: Any) -> Any:
        seeds.append(seed)
        if seed == 2:
            swallowed_interrupt()
        return run_seed(seed, *rest)

    monkeypatch.setattr(simulate, "run_seed", interrupted)
    assert cli.main(["simtest", "--seeds", "1..5", "--steps", "20"]) == 130
    assert seeds == [1, 2]


def test_an_interrupt_is_raised_at_once_and_the_handler_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt), Interrupts.noted():
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert not reached and signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_was_swallowed_at_the_very_end_is_raised_there() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts.noted():
        swallowed_interrupt()


def enum_classes(trees: dict[Path, ast.Module]) -> set[str]:
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {node.name for node in classes if any(ast.unparse(base).endswith("Enum") for base in node.bases)}


def members_by_value(tree: ast.Module, enums: set[str]) -> list[str]:
    """The places where an enum member meets another value: in a comparison other than `is`, or stored in an array."""

    def is_member(node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in enums

    aliases = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and is_member(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def is_named(node: ast.AST) -> bool:
        return is_member(node) or (isinstance(node, ast.Name) and node.id in aliases)

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            by_value = any(isinstance(op, ast.Eq | ast.NotEq | ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in node.ops)
            if by_value and any(is_named(side) for side in (node.left, *node.comparators)):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Assign) and is_named(node.value):
            found += [ast.unparse(node) for target in node.targets if isinstance(target, ast.Subscript)]
    return found


def test_no_number_of_numpy_meets_an_enum_member() -> None:
    """numpy looks up attributes of the enum's class then, in Python code, and drops an interrupt that comes there."""
    trees = {path: ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")}
    enums = enum_classes(trees)
    assert "RequestStatus" in enums
    assert {str(path): found for path, tree in trees.items() if (found := members_by_value(tree, enums))} == {}


def test_a_meeting_of_both_is_seen() -> None:
    tree = ast.parse("_X = Phase.X\na = status[0] == Phase.X\nb = status != _X\nstatus[0] = Phase.X\nc = status is _X")
    found = ["status[0] == Phase.X", "status != _X", "status[0] = Phase.X"]
    assert sorted(members_by_value(tree, {"Phase"})) == sorted(found)


# At each stage of a command, in a process of its own ----------------------------------------------------------

INTERRUPTED_IMPORT = """
import importlib.abc, signal, sys

name = sys.argv.pop(1)

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, wanted, path, target=None):
        if wanted == name:
            signal.raise_signal(signal.SIGINT)

from headway.__main__ import main

sys.meta_path.insert(0, Interrupt())
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("typer", ["generate", "hi"]),
        ("headway.commands.options", ["--help"]),
        ("torch", ["generate", "hi"]),
        ("headway.executor.loader", ["generate", "hi"]),
    ],
)
def test_an_interrupt_while_modules_or_the_model_load_ends_the_command_in_silence(
    module: str, words: list[str]
) -> None:
    program = [sys.executable, "-c", INTERRUPTED_IMPORT, module, *words]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_interrupts_in_the_middle_of_an_answer_end_the_command_in_silence() -> None:
    program = [sys.executable, "-m", "headway", "chat", "-q", "hi", "--ignore-eos", "--max-tokens", "2000"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as command:
        assert command.stdout is not None and command.stderr is not None
        assert command.stdout.read(1), "the answer has begun"
        for _ in range(3):
            command.send_signal(signal.SIGINT)
        assert command.wait(60) == 130
        assert command.stderr.read() == b""


class Finalised:
    """Is interrupted, or fails, where no error can be raised."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def __del__(self) -> None:
        raise self._error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_while_an_object_is_finalised_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reached = False
    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", __main__._raise_where_it_can_be)
        Finalised(ValueError)
        assert "ValueError" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            Finalised(KeyboardInterrupt)
            time.sleep(60)
            reached = True
    assert not reached and capsys.readouterr().err == ""
