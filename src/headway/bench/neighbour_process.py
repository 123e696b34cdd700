"""A `Neighbour` in its own process, so that no work of the benchmark holds up its clock.

    python -m headway.bench.neighbour_process URL

Questions are "begin" and "end"; the greeting is null.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

from headway.bench.answering import answer_questions
from headway.bench.child_process import AnsweringProcess
from headway.bench.neighbour import Neighbour, Waits
from headway.bench.raw_http import Address


class NeighbourProcess(AnsweringProcess):
    """A neighbour that runs for the time of a `with` block. Its methods raise ChildError."""

    def __init__(self, url: str) -> None:
        super().__init__([sys.executable, "-m", "headway.bench.neighbour_process", url])

    def begin(self) -> None:
        """See `Neighbour.begin`."""
        self.ask("begin")

    def end(self) -> Waits:
        """See `Neighbour.end`."""
        return Waits(**self.ask("end"))


def begin(url: str) -> tuple[None, Callable[[Any], Any]]:
    """Returns the greeting, and the function that answers a question."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()  # this thread waits for questions
    neighbour = Neighbour(Address.of(url))

    def answer(question: Any) -> Any:
        work = {"begin": neighbour.begin, "end": neighbour.end}[question]
        return asyncio.run_coroutine_threadsafe(work(), loop).result()

    return None, answer


if __name__ == "__main__":
    answer_questions(lambda: begin(sys.argv[1]))
