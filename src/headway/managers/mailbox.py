"""Where everything that happens is left for the writer."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Iterator

from headway.scheduler import Command, Message, Query, Result

_CROWD = 512  # commands that wait for the writer, above which whoever brings one more gives way
_GIVE_WAY = 0.01  # seconds


class Mailbox:
    """Two lanes into one thread: commands and queries from anybody, results from the device and from jobs. The writer
    takes results first.

    Handing in is one `deque.append`, whose time does not depend on what the writer does. Only a writer that sleeps is
    woken: it announces that it will sleep, looks once more, and then sleeps; a producer appends first and then looks
    for the announcement. Whichever comes second sees the other, so no message is slept through.

    Threads that hand in without end would keep the interpreter from the writer: it would get it back only after each of
    them had its turn. So where a crowd of commands is waiting, `put` sleeps a little after it has appended; it still
    waits for nobody.
    """

    def __init__(self) -> None:
        self._results: deque[Result] = deque()
        self._commands: deque[Command | Query] = deque()
        self._sleeping = False
        self._attended = False  # a writer has been here
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __len__(self) -> int:
        return len(self._results) + len(self._commands)

    def put(self, command: Command | Query) -> None:
        """Hand in a command or a query. Any thread."""
        self._commands.append(command)
        if self._sleeping:
            self._bell.put(None)
        elif self._attended and len(self._commands) > _CROWD:
            time.sleep(_GIVE_WAY)

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
        self._attended = self._sleeping = True
        try:
            if not self:
                self._bell.get(timeout=timeout)
        except queue.Empty:
            return  # nobody came; the caller looks around and sleeps again
        finally:
            self._sleeping = False
        while not self._bell.empty():  # one bell is enough; the others rang for the same messages
            self._bell.get_nowait()
