"""How a query gets its answer: a cell between the caller's thread and the writer, and the desk that keeps the cells.

The caller's side, whatever the query:

    timeout = checked_timeout(timeout)      # before the query is sent
    reply, cell = desk.open()
    try:
        mailbox.put(SomeQuery(reply, ...))
        return cell.wait(timeout)
    finally:
        desk.forget(reply)

The writer's side. `desk.take(reply)` is None if the caller has left. An immediate query is claimed before it runs:

    if cell is not None and cell.claim():
        try:
            cell.answer(handler(query))
        except QueryError as error:         # a check refused the query, and nothing has changed
            cell.fail(error)

A deferred query ("when nothing is in flight any more") is only noted when its message is applied. Its cell stays open,
so its caller can still leave. It is claimed and answered when its moment has come. (If there is nothing to do but to
answer, `answer` alone is enough: it takes the same permit.) A thread that claims a cell runs the query and answers at
once, because a caller that finds its cell claimed waits without a timeout.

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
    """The timeout in seconds, as a float. Raises ValueError unless it is a number in (0, threading.TIMEOUT_MAX].

    The caller checks it before it sends the query, so that a query with a bad timeout never runs.
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
    """Where the caller of one query waits: open, then claimed, then closed. A query whose cell is closed while open
    never runs.

    Two steps are atomic in CPython, so only one thread succeeds at each: taking the permit to run the query
    (`deque.pop`: open -> claimed) and setting the outcome (`dict.setdefault`: -> closed).

    A thread that closes the cell takes the permit first: so no query runs whose caller gets another outcome. It rings
    the bell last. A thread that finds the cell closed rings too, because the thread that closed it may have died
    before it rang.
    """

    def __init__(self) -> None:
        self._permit: deque[None] = deque([None])
        self._outcome: dict[str, tuple[Any, Exception | None]] = {}
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def claim(self) -> bool:
        """The writer will run the query now. False: the cell is claimed or closed, and the query must not run."""
        try:
            self._permit.pop()
        except IndexError:
            return False
        return True

    def answer(self, value: Any) -> bool:
        """Close the cell with an answer. False: it was closed before, and the caller never gets this answer."""
        return self._close(value, None)

    def fail(self, error: Exception) -> bool:
        """Close the cell with an error for the caller to raise. If the cell was open, its query never runs. Any thread.

        error: an object of this cell alone, since raising an error changes it.
        False: the cell was closed before, and the caller never gets this error.
        """
        return self._close(None, error)

    def wait(self, timeout: float) -> Any:
        """The answer. The caller calls this once.

        Raises TimeoutError if the query was not claimed within `timeout` seconds: it will never run. Once the query is
        claimed, `wait` returns after at most one handler: the writer answers, or dies, and then the cell fails.
        Raises the error that the cell fails with, QueryError if `wait` was called before, ValueError for a bad timeout.
        """
        timeout = checked_timeout(timeout)
        if not self._outcome:
            self._sleep(timeout)
        value, error = self._outcome[_ONLY]
        # The traceback of a raised error refers to this frame, and so to the cell. The cell must not refer to the error
        # too: the reference cycle would keep all objects of the calling frames alive.
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
            if self.claim():  # it was open: now no thread can run it
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
    """Keeps the cells of all queries whose callers wait, by reply id.

    writer: ident of the thread that answers, or None while no thread does. This thread may not ask queries: it would
        wait for itself.
    """

    def __init__(self) -> None:
        self.writer: int | None = None
        self._cells: dict[int, QueryCell] = {}
        self._replies = itertools.count(1)
        self._closed: str | None = None

    def __len__(self) -> int:
        return len(self._cells)

    def serve_here(self) -> None:
        """Declare the calling thread to be the thread that answers."""
        self.writer = threading.get_ident()

    def open(self) -> tuple[int, QueryCell]:
        """The reply id, which is never used again, and a new cell. The caller calls `forget` in a `finally`.

        Raises QueryError on the writer's thread, EngineDeadError once the desk is closed.
        """
        if threading.get_ident() == self.writer:
            raise QueryError("asked from the thread that has to answer")
        reply, cell = next(self._replies), QueryCell()
        self._cells[reply] = cell
        if self._closed is not None:  # checked last: `close` on another thread finds the cell, or is noticed here
            self.forget(reply)
            raise EngineDeadError(self._closed)
        return reply, cell

    def take(self, reply: int) -> QueryCell | None:
        """The cell to answer in; None if its caller has left. The desk keeps it until its caller forgets it."""
        return self._cells.get(reply)

    def forget(self, reply: int) -> None:
        """The caller leaves, for any reason: the desk drops its cell. If the cell was open, its query never runs."""
        cell = self._cells.pop(reply, None)
        if cell is not None:
            cell.fail(QueryError("the caller has left"))

    def close(self, error_message: str) -> None:
        """No thread answers any more: every cell, open or claimed, fails with EngineDeadError, and no further cell is
        opened. Any thread. The first message stays.
        """
        if self._closed is None:
            self._closed = error_message  # set first: see `open`
        self.writer = None  # its ident may be given to another thread
        for cell in list(self._cells.values()):
            cell.fail(EngineDeadError(self._closed))
