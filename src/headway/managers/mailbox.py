"""Where messages wait for the writer."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Iterator

from headway.scheduler import Command, Message, Query, Result

_FLOOD = 512  # with more waiting commands than this, a thread that adds one sleeps
_GIVE_WAY = 0.01  # seconds of that sleep


class Mailbox:
    """Two lanes into one thread: commands and queries from any thread, results from the device and from jobs. The
    writer takes results first.

    Putting a message in is one `deque.append`. Its time does not depend on the writer. Only a sleeping writer is woken:
    the writer announces that it will sleep, looks once more, and then sleeps. A producer appends first, and then looks
    for the announcement. The later of the two sees what the other has done, so no message is overlooked.

    Threads that put messages in without a break keep the interpreter busy: the writer would run only after each of
    these threads had its turn. So in a flood of commands `put` sleeps a little after it has appended. The length of
    this sleep does not depend on any other thread.
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
        elif self._attended and len(self._commands) > _FLOOD:
            time.sleep(_GIVE_WAY)

    def put_result(self, result: Result) -> None:
        """Hand in a result. Any thread."""
        self._results.append(result)
        if self._sleeping:
            self._bell.put(None)

    def wake(self) -> None:
        """Let `wait` return, now or at its next call. Any thread."""
        self._bell.put(None)

    def take(self, max_commands: int) -> Iterator[Message]:
        """Messages in the order in which the writer applies them: all results first, then commands and queries, first
        in, first out.

        Ends when both lanes are empty, or after `max_commands` commands and queries. A message that is not yielded
        stays in the mailbox.
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
        """Sleep until a message is there, at most `timeout` seconds. Only the writer calls this."""
        self._attended = self._sleeping = True
        try:
            if not self:
                self._bell.get(timeout=timeout)
        except queue.Empty:
            return  # no message came; the caller checks its deadlines and sleeps again
        finally:
            self._sleeping = False
        while not self._bell.empty():  # one bell is enough; the others rang for the same messages
            self._bell.get_nowait()
