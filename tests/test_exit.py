"""A process ends with its exit code, whatever its daemon threads do."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
SOURCE = Path(__file__).resolve().parents[1] / "src" / "headway"

# Each program goes on with the end of the process.
IN_NATIVE_CODE = """
import threading
import torch
square, in_it = torch.rand(600, 600), threading.Semaphore(0)
def multiply():
    while True:
        square @ square
        in_it.release()
for _ in range(2):
    threading.Thread(target=multiply, daemon=True).start()
for _ in range(4):
    in_it.acquire()
"""
WITH_A_DAEMON = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""
WITH_WORK_LEFT = """
import atexit, threading
from concurrent.futures import ThreadPoolExecutor
def last():
    threading.main_thread().join()
    print("the thread", flush=True)
threading.Thread(target=last).start()
ThreadPoolExecutor(1).submit(print, "the pool", flush=True).result()
atexit.register(print, "the second handler", end="")
atexit.register(print, "the first handler")
"""
WITH_OUTPUT = "print('text', end='')\n"
WITH_OUTPUT_CLOSED = "import sys\nsys.stdout.close()\n"
WITHOUT_OUTPUT = "import sys\nsys.stdout = None\n"


def ended(program: str, end: str, stdout: int = subprocess.PIPE) -> tuple[int, str | None, str]:
    """The exit code, standard output and standard error of a program that ends so."""
    command = [sys.executable, "-c", f"{program}\nimport sys\nfrom headway.exit import exit_process\n{end}"]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=240, env=ENVIRONMENT)
    return done.returncode, done.stdout, done.stderr


def test_a_daemon_thread_in_native_code_does_not_abort_the_process() -> None:
    assert ended(IN_NATIVE_CODE, "exit_process(3)") == (3, "", "")


def test_neither_does_it_abort_a_command() -> None:
    main = "sys.argv[1:] = ['--version']\nfrom headway.__main__ import main\nsys.exit(main())"
    code, out, err = ended(IN_NATIVE_CODE, main)
    assert (code, err) == (0, "") and out is not None and out.startswith("headway ")


WHILE_A_THREAD_PRINTS = """
import atexit, sys, threading
from headway.exit import exit_process
threading.Thread(target=sys.stdout.buffer.write, args=(bytes(1 << 20),), daemon=True).start()
sys.stdin.readline()
atexit.register(print, "ends", file=sys.stderr, flush=True)
exit_process(3)
"""


def test_a_daemon_thread_that_prints_is_not_cut_short() -> None:
    """It holds the lock of standard output: its text is longer than a pipe takes, and is read when the end is near."""
    program = [sys.executable, "-c", WHILE_A_THREAD_PRINTS]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe, env=ENVIRONMENT) as command:
        assert command.stdin is not None and command.stdout is not None and command.stderr is not None
        begun = command.stdout.read(1)
        command.stdin.write(b"\n")
        command.stdin.close()
        ends = command.stderr.readline()
        written = begun + command.stdout.read()
        assert (command.wait(240), ends + command.stderr.read()) == (3, b"ends\n")
    assert written == bytes(1 << 20)


@pytest.mark.parametrize("program", [WITH_WORK_LEFT, WITH_OUTPUT, WITH_OUTPUT_CLOSED, WITHOUT_OUTPUT])
def test_all_else_that_comes_at_the_end_of_a_program_comes(program: str) -> None:
    as_usual = ended(WITH_A_DAEMON + program, "sys.exit(3)")
    assert as_usual[0] == 3
    assert ended(WITH_A_DAEMON + program, "exit_process(3)") == as_usual
    assert ended(program, "exit_process(3)") == as_usual


def test_output_that_cannot_be_written_is_told_as_usual() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        as_usual = ended(WITH_A_DAEMON + WITH_OUTPUT, "sys.exit(3)", full)
        assert as_usual[0] == 120 and "No space left" in as_usual[2]
        assert ended(WITH_A_DAEMON + WITH_OUTPUT, "exit_process(3)", full) == as_usual
    finally:
        os.close(full)


def test_an_interrupt_at_the_end_has_nothing_to_add() -> None:
    at_the_end = "import atexit, signal\natexit.register(signal.raise_signal, signal.SIGINT)\n"
    assert ended(at_the_end, "exit_process(3)") == (3, "", "")
    assert ended(at_the_end + WITH_A_DAEMON, "exit_process(3)") == (3, "", "")


def sys_exits(tree: ast.Module) -> list[str]:
    """The calls of `sys.exit` that are written for the module as a program."""
    mains = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    calls = [node for main in mains for node in ast.walk(main) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if ast.unparse(call.func) == "sys.exit"]


def test_every_program_ends_so() -> None:
    trees = {str(path): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    assert {path: found for path, tree in trees.items() if (found := sys_exits(tree))} == {}


def test_a_program_that_ends_otherwise_is_seen() -> None:
    assert sys_exits(ast.parse("if __name__ == '__main__':\n    sys.exit(main())")) == ["sys.exit(main())"]
