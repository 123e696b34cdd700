"""The client requests in progress in this process: each from its submission to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from headway.client.feed import Feed
from headway.client.kv_sources import FindSource, KVSources
from headway.client.pending import Update
from headway.client.pending_request import PendingRequest
from headway.client.token_processor import Ended, Processed, TokenProcessor, expand
from headway.errors import DuplicateRequestError, EngineDeadError, QueueFullError, RequestError
from headway.outputs import RequestDelta, RequestOutput
from headway.request import FinishReason, NewRequest
from headway.wire import to_client, to_engine
from headway.wire.refusals import refusal

_MOST_GIVEN_UP = 4096  # ids that are remembered; the engine hears of as many aborts in milliseconds
RETRY_SECONDS = 0.05  # after which a full engine is asked again, if no request of this process ends before


class Observer(Protocol):
    """Gets what the engine does, for metrics. Called on the event loop; must not block."""

    def processed(self, processed: Processed) -> None:
        """Called once per wire message with tokens or ends."""

    def gave_up(self, ended: Ended) -> None:
        """Called for each request that ends without an answer: its client left, or the engine stopped."""


class OpenRequests:
    """Sends requests to the engine, and brings to each what the engine says of it. For one event loop.

    send: sends a message to the engine. first_uid: this process gives the uids from here on.
    window: the most answers of one request inside the engine. capacity: the most answers that may wait here.
    observer: may be set at any time. num_added: requests that this object has taken.
    """

    def __init__(
        self,
        processor: TokenProcessor,
        send: Callable[[to_engine.ToEngine], None],
        *,
        first_uid: int,
        window: int,
        capacity: int,
        observer: Observer | None = None,
    ) -> None:
        self._processor = processor
        self._send = send
        self._next_uid = first_uid
        self._window = window
        self._capacity = capacity
        self.observer = observer
        self._feeds: dict[PendingRequest, Feed] = {}  # of the requests that are neither complete nor closed
        self._by_id: dict[str, tuple[PendingRequest, int]] = {}  # request id -> pending request, index of the prompt
        self._by_slice: dict[int, PendingRequest] = {}  # first uid of a slice without the engine's word
        self._leaders: dict[int, PendingRequest] = {}  # see `Feed.leader`
        self._given_up: dict[str, None] = {}  # ids of requests that were aborted, which the engine may still have
        self._sources = KVSources(send)
        self._held_up: dict[PendingRequest, None] = {}  # whose next answers found the engine full, in order
        self._retry: asyncio.TimerHandle | None = None
        self.num_added = 0

    def __len__(self) -> int:
        return len(self._feeds)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    @property
    def num_waiting(self) -> int:
        """Answers that wait here for a place in the engine."""
        return sum(feed.num_waiting for feed in self._feeds.values())

    def add(
        self,
        requests: Sequence[NewRequest],
        *,
        stream: bool,
        source: FindSource | None = None,
        shown: Sequence[str] = (),
        confirm: bool = False,
    ) -> PendingRequest:
        """See `EngineClient.submit`."""
        request_ids = [request.request_id for request in requests]
        for request_id in request_ids:
            if request_id in self._by_id:
                raise DuplicateRequestError(f"request id {request_id!r} is in use")
        now = time.monotonic()
        pending = PendingRequest(self.release, request_ids)
        feed = Feed(
            requests,
            partial(self._register, stream=stream, shown=shown, now=now),
            partial(self._send_slice, pending),
            self._window,
            confirm=confirm,
        )
        if feed.num_answers > 1 and self.num_waiting + feed.num_answers > self._capacity:
            raise QueueFullError(
                f"{self.num_waiting} answers wait for a place in the engine; with the {feed.num_answers} of this "
                f"request there would be more than {self._capacity}; try again later"
            )
        self._feeds[pending] = feed
        self._by_id.update((request_id, (pending, index)) for index, request_id in enumerate(request_ids))
        try:
            feed.advance()
        except BaseException:
            self._forget(pending)
            raise
        self.num_added += 1
        if feed.leader is not None:
            self._leaders[feed.leader] = pending
        if source is not None:
            assert feed.slice_uid is not None, "the first answer is on its way"
            self._sources.expect(feed.slice_uid, source)
        if not feed.confirms:
            pending.accept()
        return pending

    def accepted(self, uid: int) -> None:
        """The engine has taken the slice that begins with this uid."""
        pending = self._by_slice.pop(uid, None)
        if pending is not None:
            feed = self._feeds[pending]
            feed.take()
            self._accept(pending)
            feed.advance()

    def refused(self, message: to_client.Refused) -> None:
        """The engine has taken only the beginning of a slice. A request that has begun waits if the engine is full;
        any other refusal ends it."""
        pending = self._by_slice.pop(message.uid, None)
        if pending is None:
            return
        feed = self._feeds[pending]
        feed.take(message.count)
        error = refusal(message.kind, message.message)
        if isinstance(error, QueueFullError) and feed.begun:
            self._accept(pending)
            if pending in self._feeds:
                self._hold_up(pending)
            return
        uids = self._forget(pending)
        if feed.begun:
            self._abort(pending, uids)
        pending.fail(error)

    def lends(self, uid: int, params: dict[str, Any]) -> None:
        """The engine has taken a request that lends. A stream says so at once; the last word is in the answer."""
        delta = self._processor.lends(uid, params)
        if delta is not None:
            pending, index = self._by_id[delta.request_id]
            pending.take(Update(index, delta))

    def step(self, step: to_client.Step, now: float) -> None:
        """Bring the effects of a step to the requests. now: seconds, `time.monotonic`."""
        processed = self._processor.process(step.effects, now)
        if processed.stop_uids:
            self._send(to_engine.Finish(processed.stop_uids))
        arrived: list[RequestDelta | RequestOutput] = [*processed.deltas, *processed.outputs]
        for output in arrived:
            # The delta before, in this step, may have ended a stream that is not read.
            pending, index = self._by_id.get(output.request_id, (None, 0))
            if pending is None:
                continue
            if output.request_id in processed.shut_down:
                pending.fail(EngineDeadError("the request was aborted: the engine was shut down"))
            elif output.request_id in processed.refused:
                pending.fail(RequestError(processed.refused[output.request_id]))
            else:
                pending.take(Update(index, output))
            if output.finished:
                self._by_id.pop(output.request_id, None)
            self._count_out(pending, output)
        for uid in step.sourceless:
            self._sources.begin(uid)
        if self._leaders:
            self._follow(step)
        if step.ended:
            for end in step.ended:
                self._sources.drop(end.uid)
            self._try_again()
        if self.observer is not None:
            self.observer.processed(processed)

    def release(self, pending: PendingRequest, reason: FinishReason = FinishReason.ABORT) -> None:
        """Abort what is open of a pending request. reason: how the metrics count its open answers."""
        if pending not in self._feeds:
            return
        for request_id in pending.request_ids:
            if self.observer is not None and self._by_id.get(request_id, (None, 0))[0] is pending:
                ended = self._processor.give_up(request_id, reason, time.monotonic())
                if ended is not None:
                    self.observer.gave_up(ended)
        uids = self._forget(pending)
        if uids:
            self._abort(pending, uids)

    def fail(self, make_error: Callable[[], EngineDeadError]) -> None:
        """End all requests with an error, of its own for each: raising changes it."""
        for pending in list(self._feeds):
            self.release(pending, FinishReason.ERROR)
            pending.fail(make_error())

    # -- the inside

    def _abort(self, pending: PendingRequest, uids: list[int]) -> None:
        self._given_up.update(dict.fromkeys(pending.request_ids))
        while len(self._given_up) > _MOST_GIVEN_UP:
            del self._given_up[next(iter(self._given_up))]
        self._send(to_engine.Abort(uids))

    def _register(self, request: NewRequest, *, stream: bool, shown: Sequence[str], now: float) -> list[NewRequest]:
        uids = range(self._next_uid, self._next_uid + request.sampling.n)
        self._next_uid += len(uids)
        arrival_time = now if request.arrival_time is None else request.arrival_time
        self._processor.add(request, uids, now=arrival_time, stream=stream, shown=shown)
        if request.request_id in self._given_up:  # a client that asks anew at once must not wait for the end of the old
            request = replace(request, request_id=f"{request.request_id}-{uids[0]}")
        return expand(request, uids)

    def _send_slice(self, pending: PendingRequest, answers: list[NewRequest]) -> None:
        uid = answers[0].uid
        assert uid is not None, "`_register` gives uids"
        self._by_slice[uid] = pending
        self._send(to_engine.AddGroup(answers, confirm=self._feeds[pending].confirms))

    def _follow(self, step: to_client.Step) -> None:
        """Send the answers whose leader has its first token, or is over."""
        heard = {end.uid for end in step.ended}.union(*(outputs.uids.tolist() for outputs in step.tokens))
        for uid in heard & self._leaders.keys():
            feed = self._feeds[self._leaders.pop(uid)]
            feed.follow()
            feed.advance()

    def _accept(self, pending: PendingRequest) -> None:
        pending.accept()
        if pending.complete:
            self._forget(pending)

    def _count_out(self, pending: PendingRequest, output: RequestDelta | RequestOutput) -> None:
        feed = self._feeds.get(pending)
        if feed is None:  # it could not keep more updates that are not read
            return
        if pending.complete:
            self._forget(pending)
        elif isinstance(output, RequestOutput):
            feed.ended(len(output.outputs))
            feed.advance()
        elif output.finish_reason is not None:
            feed.ended(1)
            feed.advance()

    def _hold_up(self, pending: PendingRequest) -> None:
        self._held_up[pending] = None
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        """Send the next slice of the request that found the engine full first."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._held_up:
            pending = next(iter(self._held_up))
            del self._held_up[pending]
            self._feeds[pending].advance()
        if self._held_up:
            self._hold_up(next(iter(self._held_up)))

    def _forget(self, pending: PendingRequest) -> list[int]:
        """Drop all records of a pending request; returns the uids that the engine may still have."""
        feed = self._feeds.pop(pending)
        self._held_up.pop(pending, None)
        if feed.leader is not None:
            self._leaders.pop(feed.leader, None)
        if feed.slice_uid is not None:
            self._by_slice.pop(feed.slice_uid, None)
        uids: list[int] = []
        for request_id in pending.request_ids:
            if self._by_id.get(request_id, (None, 0))[0] is pending:
                del self._by_id[request_id]
                uids += self._processor.discard(request_id)
        for uid in uids:
            self._sources.drop(uid)
        return uids
