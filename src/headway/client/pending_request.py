"""One client request in progress, in the API process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from headway.client.pending import Pending, Update
from headway.client.prompt_scores import PromptScores
from headway.outputs import RequestDelta, RequestOutput
from headway.request import FinishReason


class RequestFailedError(RuntimeError):
    """An accepted request could not be completed. HTTP 500."""

    code = "generation_failed"


class SlowReaderError(RequestFailedError):
    """The client does not read its stream, and more of it has come than is kept."""

    code = "slow_reader"


PER_TURN = 65_536  # bytes of updates that are read in one turn of the event loop, about
PER_UPDATE = 16_384  # bytes to which deltas of an answer that wait are put together, about
MAX_UNREAD = 16 * 2**20  # bytes of updates that wait for a client that does not read
_PER_DELTA, _PER_TOKEN, _PER_LOGPROB, _PER_SCORE = 600, 40, 130, 12  # bytes, about


class PendingRequest(Pending):
    """A client request that is at one engine. Updates are kept back until the engine has accepted the first answers.

    release: called when no more updates are wanted. `OpenRequests` calls `take`, `accept` and `fail`.
    """

    def __init__(self, release: Callable[[PendingRequest], None], request_ids: Sequence[str]) -> None:
        self._release = release
        self.request_ids = tuple(request_ids)  # of the prompts, in order
        self._unfinished = set(request_ids)
        self._accepted = False
        self._updates: deque[Update] = deque()
        self._last: dict[tuple[int, int], RequestDelta] = {}  # the last delta of each answer that waits
        self._unread = 0  # bytes of the updates, about
        self._has_more = False
        self._error: Exception | None = None
        self._wake = asyncio.Event()

    async def __anext__(self) -> list[Update]:
        while True:
            if self._error is not None:
                raise self._error
            if self._accepted and self._updates:
                if self._has_more:  # left by the turn before
                    self._has_more = False
                    await asyncio.sleep(0)
                    continue
                return self._read()
            if self.complete:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()

    def _read(self) -> list[Update]:
        """The updates for one turn."""
        updates, size = [], 0
        while self._updates and size < PER_TURN:
            update = self._updates.popleft()
            size += _size_of(update.output)
            updates.append(update)
            if isinstance(update.output, RequestDelta):
                answer = update.prompt_index, update.output.index
                if self._last.get(answer) is update.output:
                    del self._last[answer]
        self._unread -= size
        self._has_more = bool(self._updates)
        return updates

    @property
    def accepted(self) -> bool:
        return self._accepted

    @property
    def complete(self) -> bool:
        return self._accepted and not self._unfinished

    def close(self) -> None:
        self._release(self)

    # -- for OpenRequests

    def take(self, update: Update) -> None:
        """Add an update. A delta is put to the delta of the same answer that waits: a server that comes late with
        thousands of answers must not take its readers for slow ones, since a delta alone takes more than a token."""
        failure = _failure_of(update.output)
        if failure is not None:
            self.fail(failure)
            return
        merged = self._merge(update)
        if self._unread > MAX_UNREAD:
            self._updates.clear()
            self._last.clear()
            self.close()
            self.fail(
                SlowReaderError(
                    f"the answer was ended: more than {MAX_UNREAD} bytes of it waited to be read; read the stream as "
                    "it comes"
                )
            )
            return
        if not merged:
            self._updates.append(update)
        if update.output.finished:
            self._unfinished.discard(update.output.request_id)
        self._wake.set()

    def _merge(self, update: Update) -> bool:
        """Count an update as unread; put a delta to the delta that waits, if that has room. Returns whether
        that was done."""
        output = update.output
        size = _size_of(output)
        self._unread += size
        if not isinstance(output, RequestDelta):
            return False
        answer = update.prompt_index, output.index
        last = self._last.get(answer)
        if last is not None and _size_of(last) + size <= PER_UPDATE:
            last.append(output)
            self._unread -= _PER_DELTA
            return True
        self._last[answer] = output
        return False

    def accept(self) -> None:
        """The engine has accepted the first answers. Idempotent."""
        self._accepted = True
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """Iterating raises this error from now on. The first error stays."""
        if self._error is None:
            self._error = error
        self._wake.set()


def _size_of(output: RequestDelta | RequestOutput) -> int:
    """About the bytes that this keeps while it is unread. A whole answer is read at once: it counts nothing."""
    if not isinstance(output, RequestDelta):
        return 0
    num_logprobs = sum(map(len, output.logprobs or ()))
    size = _PER_DELTA + len(output.text) + _PER_TOKEN * len(output.token_ids) + _PER_LOGPROB * num_logprobs
    scores = output.prompt_logprobs
    return size + (_PER_SCORE * scores.num_values if isinstance(scores, PromptScores) else 0)


def _failure_of(output: RequestDelta | RequestOutput) -> Exception | None:
    answers = [output] if isinstance(output, RequestDelta) else output.outputs
    for answer in answers:
        if answer.finish_reason is FinishReason.ERROR:
            return RequestFailedError(answer.error or "the request failed")
    return None
