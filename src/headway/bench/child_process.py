"""Programs that run beside this one for the time of a `with` block. At its end they and their files are gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

_LAST_LINES = 20


class ChildError(RuntimeError):
    """The program has failed; the message ends with the last lines that it printed."""


class ChildProcess:
    """A program without input.

    log: the file that gets the output of the program, so that it can never block on a full pipe.
    stop_timeout_s: seconds between SIGTERM and SIGKILL at the end of the block; 0 kills at once.
    """

    answers = False
    """True: standard input and output are pipes, for questions and answers. Standard error always goes to the log."""

    def __init__(self, command: Sequence[str], *, stop_timeout_s: float = 0.0) -> None:
        self._command = list(command)
        self._stop_timeout_s = stop_timeout_s

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="headway-child-")
        self.log = Path(self._folder.name) / "log"
        with self.log.open("wb") as log:
            # A new session: Ctrl-C reaches only this process, and the program can be stopped with its children.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE if self.answers else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.answers else log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},  # its output must not wait in a buffer
                start_new_session=True,
                text=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the program has not ended."""
        return self._process.poll() is None

    def wait(self, timeout_s: float) -> int:
        """The exit code, once the program has ended. Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout_s)

    def printed(self) -> str:
        """The whole text of the log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_words(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.printed().splitlines()[-_LAST_LINES:])

    def _wait_until_ready(self) -> None:
        pass

    def _stop(self) -> None:
        """Ask the program to end, then kill what is left of its process group."""
        try:
            if self._stop_timeout_s:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):  # the group is killed below in any case
                    self._process.wait(self._stop_timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # the program ended before it read a question
                        pipe.close()
            self._folder.cleanup()


class AnsweringProcess(ChildProcess):
    """A program that answers questions by `answering.answer_questions`. hello: its greeting.

    Its methods raise ChildError if the program ends or fails.
    """

    answers = True

    def ask(self, question: Any) -> Any:
        """Send a question and return its answer. Both are JSON values."""
        self.send(question)
        return self.receive()

    def send(self, question: Any) -> None:
        """Send a question; `receive` returns its answer later."""
        with contextlib.suppress(BrokenPipeError):  # the program has died; `receive` raises the reason
            print(json.dumps(question), file=self._pipe(self._process.stdin), flush=True)

    def receive(self) -> Any:
        """The answer to the earliest question without one."""
        line = self._pipe(self._process.stdout).readline()
        if not line:
            code = self._process.wait()
            raise ChildError(f"the process ended with exit code {code}:\n{self.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(f"the process failed:\n{answer['error']}")
        return answer["answer"]

    def _wait_until_ready(self) -> None:
        self.hello = self.receive()

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None, "opened with the process"
        return pipe
