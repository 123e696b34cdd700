"""Programs that run beside this one as long as a `with` block, and of which nothing is left afterwards."""

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
    """The program has failed; the message ends with what it said last."""


class ChildProcess:
    """A program that asks for nothing.

    log: the file that takes what the program prints, so that it can never block on a full pipe.
    stop_timeout_s: seconds between SIGTERM and SIGKILL at the end of the block; 0 kills at once.
    """

    answers = False
    """Standard input and output are pipes, for questions and answers. Standard error goes to the log all the same."""

    def __init__(self, command: Sequence[str], *, stop_timeout_s: float = 0.0) -> None:
        self._command = list(command)
        self._stop_timeout_s = stop_timeout_s

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="headway-child-")
        self.log = Path(self._folder.name) / "log"
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C reaches only us, and whatever the program starts can be stopped with it.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE if self.answers else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.answers else log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},  # what it prints must not wait in a buffer
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

    def printed(self) -> str:
        """All that is in the log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_words(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.printed().splitlines()[-_LAST_LINES:])

    def _wait_until_ready(self) -> None:
        pass

    def _stop(self) -> None:
        """Ask the program to end, then end whatever is left of its process group."""
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
                    with contextlib.suppress(BrokenPipeError):  # a question that the program did not live to read
                        pipe.close()
            self._folder.cleanup()


class AnsweringProcess(ChildProcess):
    """A program that answers questions by `answering.answer_questions`. hello: what it says at the start.

    Raises ChildError where the program ends or fails instead.
    """

    answers = True

    def ask(self, question: Any) -> Any:
        """Both are what JSON can hold."""
        self.send(question)
        return self.receive()

    def send(self, question: Any) -> None:
        """Ask, and come for the answer later, by `receive`."""
        with contextlib.suppress(BrokenPipeError):  # the program has died; why, `receive` says
            print(json.dumps(question), file=self._pipe(self._process.stdin), flush=True)

    def receive(self) -> Any:
        """The answer to the earliest question that has none yet."""
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
