"""How a question gets its answer: a cell between the thread that asks and the writer, and the desk that keeps them.

The caller's side, whatever the query:

    timeout = checked_timeout(timeout)      # before anything is handed in
    reply, cell = desk.open()
    try:
        mailbox.put(SomeQuery(reply, ...))
        return cell.wait(timeout)
    finally:
        desk.forget(reply)

The writer's side; `desk.take(reply)` is None if the caller has left. An immediate query is claimed before it acts:

    if cell is not None and cell.claim():
        try:
            cell.answer(handler(query))
        except QueryError as error:         # its check refused, and nothing has changed
            cell.fail(error)

A deferred one ("when nothing is in flight any more") is only noted when its message is applied, and stays open: its
caller can still leave. It is claimed when its moment has come, and answered in the same breath. (If there is nothing
to do but to answer, `answer` alone is enough: it takes the same permit.) Whoever claims acts and answers at once,
because a caller that finds its cell claimed waits without a limit of its own.

`verification/query.pml` is a model of both sides, of shutdown and of a writer that dies, checked exhaustively.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from numbers import Real
from typing import Any

from headway.errors import EngineDeadError, QueryError

_ONLY = "outcome"


def checked_timeout(timeout: float) -> float:
    """How long to wait, in seconds. Raises ValueError for anything but a number above 0 that a clock can count to.

    The caller checks before it hands anything in, so that a query with a bad timeout never runs.
    """
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, Real)
        or not 0 < timeout <= threading.TIMEOUT_MAX  # also refuses NaN and infinity
    ):
        raise ValueError(
            f"timeout must be a number of seconds above 0 and at most {threading.TIMEOUT_MAX:.0f}, got {timeout!r}"
        )
    return float(timeout)


class QueryCell:
    """One question's way back: open, then claimed, then closed; or closed while it was open, and then it never runs.

    Two things that exactly one thread gets, because each is one operation that CPython carries out whole: the permit
    to run the query (`deque.pop`: open -> claimed) and the say in what the caller is told (`dict.setdefault`:
    -> closed). Whoever closes takes the permit first, so that nothing runs for a caller that is told something else,
    and rings last. Whoever finds the cell closed rings as well: the one that closed it may have died before it could.
    """

    def __init__(self) -> None:
        self._permit: deque[None] = deque([None])
        self._outcome: dict[str, tuple[Any, Exception | None]] = {}
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def claim(self) -> bool:
        """The writer will act now. False: the cell is closed, and the query must not run."""
        try:
            self._permit.pop()
        except IndexError:
            return False
        return True

    def answer(self, value: Any) -> bool:
        """Close the cell with an answer. False: it was closed before, and nobody hears of this one."""
        return self._close(value, None)

    def fail(self, error: Exception) -> bool:
        """Close the cell with an error for the caller to raise; an open one will never run. Any thread.

        False: it was closed before, and nobody hears of this one. The error must be this cell's alone.
        """
        return self._close(None, error)

    def wait(self, timeout: float) -> Any:
        """The answer. For the caller, once.

        Raises TimeoutError if the query was not claimed within `timeout` seconds: it will never run. Once it is
        claimed its answer is at most one handler away, and is waited for: the writer answers, or dies, and then the
        cell is failed. Raises whatever the cell is failed with, QueryError if it was waited for before, and
        ValueError for a bad timeout.
        """
        timeout = checked_timeout(timeout)
        if not self._outcome:
            self._sleep(timeout)
        value, error = self._outcome[_ONLY]
        # A cell that kept an error that was raised would be kept by it, and with it all that the callers hold.
        self._outcome[_ONLY] = None, QueryError("a query is waited for once")
        if error is None:
            return value
        try:
            raise error
        finally:
            del error

    def _sleep(self, timeout: float) -> None:
        try:
            self._bell.get(timeout=timeout)
        except queue.Empty:
            if self.claim():  # it was open: now nobody runs it
                self.fail(
                    TimeoutError(f"the query was not answered within {timeout:.3g} s and will not be carried out")
                )
            else:
                self._bell.get()

    def _close(self, value: Any, error: Exception | None) -> bool:
        self.claim()
        outcome = (value, error)
        is_first = self._outcome.setdefault(_ONLY, outcome) is outcome
        self._bell.put(None)
        return is_first


class QueryDesk:
    """Keeps the cells of all questions whose callers wait, by reply id.

    writer: ident of the thread that answers, or None while none does. It may not ask: it would wait for itself.
    """

    def __init__(self) -> None:
        self.writer: int | None = None
        self._cells: dict[int, QueryCell] = {}
        self._replies = itertools.count(1)
        self._closed: str | None = None

    def __len__(self) -> int:
        return len(self._cells)

    def serve_here(self) -> None:
        """This thread is the one that answers."""
        self.writer = threading.get_ident()

    def open(self) -> tuple[int, QueryCell]:
        """A new cell and its reply id, which is never used again. Whoever opens forgets, in a `finally`.

        Raises QueryError on the writer's thread, EngineDeadError once the desk is closed.
        """
        if threading.get_ident() == self.writer:
            raise QueryError("asked from the thread that has to answer")
        reply, cell = next(self._replies), QueryCell()
        self._cells[reply] = cell
        if self._closed is not None:  # looked at last: whoever closes either finds the cell or is seen here
            self.forget(reply)
            raise EngineDeadError(self._closed)
        return reply, cell

    def take(self, reply: int) -> QueryCell | None:
        """The cell to answer into; None if its caller has left. It stays until the caller forgets it."""
        return self._cells.get(reply)

    def forget(self, reply: int) -> None:
        """The caller leaves, for whatever reason: nothing is kept for it, and what was still open never runs."""
        cell = self._cells.pop(reply, None)
        if cell is not None:
            cell.fail(QueryError("the caller has left"))

    def close(self, error_message: str) -> None:
        """Nobody answers any more: every cell, open or claimed, fails, and no further one is opened. Any thread.

        The first message stays.
        """
        if self._closed is None:
            self._closed = error_message  # set first: see `open`
        self.writer = None  # its ident may be given to another thread
        for cell in list(self._cells.values()):
            cell.fail(EngineDeadError(self._closed))
