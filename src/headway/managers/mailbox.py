"""Where everything that happens is left for the writer."""

from __future__ import annotations

import os
import queue
import time
from collections import deque
from collections.abc import Iterator

from headway.scheduler import Command, Message, Query, Result

CROWD = int(os.environ.get("CROWD","512"))
GIVE_WAY = float(os.environ.get("GW","20"))*1e-6


class Mailbox:
    """Two lanes into one thread: commands and queries from anybody, results from the device and from jobs. The writer
    takes results first.

    Handing in is one `deque.append`, whose time does not depend on what the writer does. Only a writer that sleeps is
    woken: it announces that it will sleep, looks once more, and then sleeps; a producer appends first and then looks
    for the announcement. Whichever comes second sees the other, so no message is slept through.
    """

    def __init__(self) -> None:
        self._results: deque[Result] = deque()
        self._commands: deque[Command | Query] = deque()
        self._sleeping = False
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __len__(self) -> int:
        return len(self._results) + len(self._commands)

    def put(self, command: Command | Query) -> None:
        """Hand in a command or a query. Any thread."""
        self._commands.append(command)
        if self._sleeping:
            self._bell.put(None)
        elif len(self._commands) > CROWD:
            time.sleep(len(self._commands) * GIVE_WAY)

    def put_result(self, result: Result) -> None:
        """Hand in a result. Any thread."""
        self._results.append(result)
        if self._sleeping:
            self._bell.put(None)

    def wake(self) -> None:
        """Let a writer that sleeps, or is about to, look around. Any thread."""
        self._bell.put(None)

    def take(self, max_commands: int) -> Iterator[Message]:
        """Messages in the order the writer applies them: every result first, then commands first in, first out.

        Ends when both lanes are empty or after so many commands; nothing is taken that is not yielded.
        """
        for _ in range(max_commands):
            while self._results:
                yield self._results.popleft()
            if not self._commands:
                return
            yield self._commands.popleft()
        while self._results:
            yield self._results.popleft()

    def wait(self, timeout: float) -> None:
        """Sleep until something is there, at most `timeout` seconds. For the writer alone."""
        self._sleeping = True
        try:
            if not self:
                self._bell.get(timeout=timeout)
        except queue.Empty:
            return  # nobody came; the caller looks around and sleeps again
        finally:
            self._sleeping = False
        while not self._bell.empty():  # one bell is enough; the others rang for the same messages
            self._bell.get_nowait()
