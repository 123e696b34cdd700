"""What has to be done to a request before its prompt is one (fetching an image, encoding it), behind the writer."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.request import Request, Span
from headway.scheduler.messages import PreprocessDone
from headway.token_ids import NUM_INT32, pack

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What a preprocessor makes of a request.

    prompt: token ids, flat; None: those that the request came with.
    spans: the parts of the prompt that must not be cut, in order.
    """

    prompt: Sequence[int] | NDArray[np.integer] | None = None
    spans: tuple[Span, ...] = ()


class PreprocessPool:
    """Runs `prepare` on threads of its own and posts what came of it: once per job, unless the job was cancelled.

    The writer submits and cancels, and never waits. Deadlines are the core's: it ends a request that takes too long,
    and what a job says of a request that has ended is ignored.

    prepare: called with a request that has `preprocess`, on any of the threads, several at a time. What it raises,
        and anything but a usable `Prepared`, ends the request with an error.
    post: called on the same threads; must not raise.
    """

    def __init__(
        self, prepare: Callable[[Request], Prepared], num_threads: int, post: Callable[[PreprocessDone], None]
    ) -> None:
        if num_threads < 1:
            raise ValueError(f"a preprocess pool needs at least 1 thread, got {num_threads}")
        self._prepare = prepare
        self._post = post
        # A uid is taken out of `_queued` by exactly one: whoever cancels it, or the thread that runs it.
        self._queued: dict[int, Request] = {}
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._stopped = False
        # Daemons: a job that hangs cannot be interrupted, and must not keep the process alive.
        self._threads = [
            threading.Thread(target=self._serve, name=f"headway-preprocess-{i}", daemon=True)
            for i in range(num_threads)
        ]

    def start(self) -> None:
        """Begin with what was submitted."""
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request) -> None:
        """Prepare this request. Returns at once."""
        self._queued[request.uid] = request
        self._queue.put(request.uid)

    def cancel(self, uid: int) -> None:
        """Nobody wants this one any more: it is not begun. Once it runs, or is not known, this changes nothing."""
        self._queued.pop(uid, None)

    def shutdown(self, timeout: float = 1.0) -> None:
        """Begin nothing more, report nothing more, and wait up to `timeout` seconds for what runs. Idempotent."""
        self._stopped = True
        self._queued.clear()
        for _ in self._threads:
            self._queue.put(None)
        until = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    def _serve(self) -> None:
        while (uid := self._queue.get()) is not None:
            request = self._queued.pop(uid, None)
            if request is None:
                continue
            done = self._run(request)
            if not self._stopped:
                self._post(done)

    def _run(self, request: Request) -> PreprocessDone:
        try:
            return _packed(request, self._prepare(request))
        except ValueError as error:  # the user's to mend; it says all there is to say
            return PreprocessDone(request.uid, error=str(error) or "ValueError")
        except BaseException as error:  # whatever somebody else's code raises: the thread is needed again
            logger.exception("preparing request %r failed", request.request_id)
            return PreprocessDone(request.uid, error=f"{type(error).__name__}: {error}")


def _packed(request: Request, prepared: Prepared) -> PreprocessDone:
    """The result in the core's form. Raises TypeError or ValueError for one that has none."""
    if not isinstance(prepared, Prepared):
        raise TypeError(f"the preprocessor must return Prepared, got {type(prepared).__name__}")
    spans = tuple(prepared.spans)
    for span in spans:
        if not isinstance(span, Span):
            raise TypeError(f"the preprocessor's spans must be Span, got {type(span).__name__}")
    if prepared.prompt is None:
        return PreprocessDone(request.uid, request.prompt if spans else None, spans)
    tokens = pack(prepared.prompt, NUM_INT32, "the preprocessor's prompt")
    if not len(tokens):
        raise ValueError("the preprocessor's prompt is empty; at least 1 token is needed")
    return PreprocessDone(request.uid, tokens, spans)
