"""Prepares requests that are not ready (an image to fetch, a text to encode, a grammar to compile), on threads of its
own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.errors import RequestError
from headway.request import Request, Span
from headway.scheduler.messages import PreprocessDone
from headway.token_ids import NUM_INT32, pack

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """The result of a preprocessor for one request.

    prompt: token ids, shape (tokens,); None: the prompt of the request stays as it is.
    spans: the parts of the prompt that must not be cut, in order.
    grammar: what the executor needs to give the answer its form.
    """

    prompt: Sequence[int] | NDArray[np.integer] | None = None
    spans: tuple[Span, ...] = ()
    grammar: object | None = None


class PreprocessPool:
    """Runs `prepare` on its own threads, and posts one result per job, unless the job was cancelled.

    The writer submits and cancels, and never waits. The core keeps the deadlines: it ends a request that takes too
    long, and ignores the result of a job whose request has ended.

    prepare: called with a request that is `to_prepare`, on several threads at once. If it raises, or returns no
        usable `Prepared`, the request ends with an error; a RequestError counts as a refusal.
    post: gets each result, on the thread that ran the job; must not raise.
    """

    def __init__(
        self, prepare: Callable[[Request], Prepared], num_threads: int, post: Callable[[PreprocessDone], None]
    ) -> None:
        if num_threads < 1:
            raise ValueError(f"a preprocess pool needs at least 1 thread, got {num_threads}")
        self._prepare = prepare
        self._post = post
        # Exactly one thread takes a uid out of `_queued`: the thread that cancels the job, or the thread that runs it.
        self._queued: dict[int, Request] = {}
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._stopped = False
        # Daemon threads: a job that hangs cannot be interrupted, and must not keep the process alive.
        self._threads = [
            threading.Thread(target=self._serve, name=f"headway-preprocess-{i}", daemon=True)
            for i in range(num_threads)
        ]

    def start(self) -> None:
        """Start the threads. They begin with the jobs that were submitted before."""
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request) -> None:
        """Prepare this request. Returns at once."""
        self._queued[request.uid] = request
        self._queue.put(request.uid)

    def cancel(self, uid: int) -> None:
        """Drop a job that has not begun. A job that runs goes on; an unknown uid is ignored."""
        self._queued.pop(uid, None)

    def shutdown(self, timeout: float = 1.0) -> None:
        """Begin and report no more jobs, and wait up to `timeout` seconds for the jobs that run. Idempotent."""
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
        except RequestError as error:
            return PreprocessDone(request.uid, error=str(error), refused=True)
        except ValueError as error:  # an error of the user; its message is enough
            return PreprocessDone(request.uid, error=str(error) or "ValueError")
        except BaseException as error:  # `prepare` is foreign code and may raise anything: the thread must go on
            logger.exception("preparing request %r failed", request.request_id)
            return PreprocessDone(request.uid, error=f"{type(error).__name__}: {error}")


def _packed(request: Request, prepared: Prepared) -> PreprocessDone:
    """The result in the core's form. Raises TypeError or ValueError for a result that the core cannot use."""
    if not isinstance(prepared, Prepared):
        raise TypeError(f"the preprocessor must return Prepared, got {type(prepared).__name__}")
    spans = tuple(prepared.spans)
    for span in spans:
        if not isinstance(span, Span):
            raise TypeError(f"the preprocessor's spans must be Span, got {type(span).__name__}")
    if prepared.prompt is None:
        return PreprocessDone(request.uid, request.prompt if spans else None, spans, grammar=prepared.grammar)
    tokens = pack(prepared.prompt, NUM_INT32, "the preprocessor's prompt")
    if not len(tokens):
        raise ValueError("the preprocessor's prompt is empty; at least 1 token is needed")
    return PreprocessDone(request.uid, tokens, spans, grammar=prepared.grammar)
