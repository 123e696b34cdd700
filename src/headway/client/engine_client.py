"""The engine as an API process sees it: an asyncio object that starts the engine process and talks to it.

    client = await EngineClient.start(config)
    request = NewRequest(request_id="a", prompt=client.pack([1, 2, 3]), sampling=SamplingParams())
    with client.submit([request], stream=True) as pending:
        async for updates in pending:  # all updates since the last time
            ...
    await client.shutdown()

Everything runs on one event loop: the sockets, the token processor, the pending requests. Leaving the `with` block
early, for any reason, aborts the requests that are unfinished. So a client that went away costs no more steps.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from headway.client.link import EngineStartError, Link, ProcessLink
from headway.client.pending_request import PendingRequest, RequestFailedError, Update
from headway.client.token_processor import Ended, Processed, TokenProcessor, expand
from headway.config import EngineConfig, PauseMode, SchedulerConfig
from headway.errors import EngineDeadError
from headway.model_files import ModelFiles
from headway.outputs import RequestDelta, RequestOutput
from headway.request import FinishReason, NewRequest
from headway.token_ids import pack
from headway.wire import to_client, to_engine
from headway.wire.refusals import refusal
from headway.wire.to_client import AuditReport, Snapshot
from headway.wire.uids import UID_BITS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SILENCE_LIMIT = 10.0  # seconds without a pulse after which an engine does not count as healthy
ANSWER_MARGIN = 5.0  # seconds that the answer to a call may come later than its timeout in the engine
LONG_TEXT = 4096  # characters; tokenising them takes about a millisecond

T = TypeVar("T")
logger = logging.getLogger(__name__)

__all__ = ["EngineClient", "EngineStartError", "Observer", "PendingRequest", "RequestFailedError", "Update"]


class Observer(Protocol):
    """Gets what the engine does, for metrics. Called on the event loop; must not block."""

    def processed(self, processed: Processed) -> None:
        """Called once per wire message with tokens or ends."""

    def gave_up(self, ended: Ended) -> None:
        """Called for each request that ends without an answer: its client left, or the engine stopped."""


class EngineClient:
    """See the module. `start` makes it. Not thread-safe: all calls come from the event loop that started it."""

    def __init__(
        self,
        *,
        files: ModelFiles,
        tokenizer: PreTrainedTokenizerBase,
        config: SchedulerConfig,
        link: Link,
        index: int = 0,
        observer: Observer | None = None,
    ) -> None:
        self.files = files
        self.tokenizer = tokenizer
        self.config = config
        self.snapshot = Snapshot()
        self.observer = observer
        self._link = link
        self._processor = TokenProcessor(tokenizer, files.limits.eos_token_ids)
        self._next_uid = index << UID_BITS
        self._numbers = itertools.count(index << UID_BITS)
        self._calls: dict[int, asyncio.Future[Any]] = {}  # calls that wait for their answer, by number
        self._open: dict[str, tuple[PendingRequest, int]] = {}  # request id -> pending request, index of the prompt
        self._pending: dict[int, PendingRequest] = {}  # neither complete nor closed, by first uid
        self._stalled = False
        self._failure: str | None = None
        self._last_heard = time.monotonic()
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch())]

    @classmethod
    async def start(cls, config: EngineConfig, *, engine_args: Sequence[str] = ()) -> EngineClient:
        """Start an engine process and wait until it takes requests.

        engine_args: for the engine process, see `python -m headway.engine.process --help`.
        Raises EngineStartError, or ValueError for a model that cannot be served.
        """
        link = await ProcessLink.open(engine_args)
        try:
            files = await _in_thread(partial(ModelFiles.resolve, config))  # while the engine process imports libraries
            # The engine gets the folder, so that the two can never read different revisions of a hub model.
            link.launch(
                replace(config, model=str(files.path), served_model_name=files.name),
                files.limits,
            )
            tokenizer = await _in_thread(files.load_tokenizer)
            ready = await link.wait_ready()
        except BaseException:
            await link.close(kill=True)
            raise
        return cls(files=files, tokenizer=tokenizer, config=ready.config, link=link)

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of a text. A long text is tokenised on another thread, so that the event loop goes on."""
        encode = partial(self.tokenizer.encode, text, add_special_tokens=add_special_tokens, verbose=False)
        return await asyncio.to_thread(encode) if len(text) > LONG_TEXT else encode()

    @property
    def num_open(self) -> int:
        """Pending requests that are neither complete nor closed."""
        return len(self._pending)

    @property
    def engine_pid(self) -> int:
        """The process id of the engine."""
        return self._link.pid

    def why_unhealthy(self) -> str | None:
        """Why the engine is not healthy now (dead, stalled or silent), in one line; None if it is healthy."""
        if self._failure is not None:
            return self._failure
        if self._stalled:
            return "the engine has work and makes no progress"
        silence = time.monotonic() - self._last_heard
        if silence > SILENCE_LIMIT:
            return f"the engine process has not answered for {silence:.0f} seconds"
        return None

    def pack(self, token_ids: Sequence[int]) -> NDArray[np.int32]:
        """Token ids as `NewRequest.prompt`. Raises RequestError for an id that the model does not have."""
        return pack(token_ids, self.files.limits.vocab_size)

    def submit(self, requests: Sequence[NewRequest], *, stream: bool) -> PendingRequest:
        """Send the prompts of one client request; returns at once. All are accepted, or none.

        requests: with prompts that `pack` made and request ids that are not in use; this object gives the uids.
        stream: True: updates bring deltas; False: complete outputs.

        Raises DuplicateRequestError or EngineDeadError. The engine finds all other errors of a request; iterating the
        result raises them.
        """
        if self._failure is not None:
            raise EngineDeadError(self._failure)
        now = time.monotonic()
        request_ids = [request.request_id for request in requests]
        num_answers = sum(request.sampling.n for request in requests)
        pending = PendingRequest(self._release, self._next_uid, request_ids, accepted=num_answers == 1)
        answers: list[NewRequest] = []
        try:
            for index, request in enumerate(requests):
                uids = range(self._next_uid, self._next_uid + request.sampling.n)
                self._next_uid += len(uids)
                arrival_time = now if request.arrival_time is None else request.arrival_time
                self._processor.add(request, uids, now=arrival_time, stream=stream)
                self._open[request.request_id] = (pending, index)
                answers += expand(request, uids)
        except BaseException:
            self._forget(pending)
            raise
        self._pending[pending.first_uid] = pending
        self._link.send(to_engine.AddGroup(answers))
        return pending

    async def pause(self, mode: PauseMode = "abort", *, reset_prefix_cache: bool = True, timeout: float = 30.0) -> None:
        """See `Manager.pause`. Like every call it also raises EngineDeadError if the engine stops before it answers,
        and TimeoutError if no answer comes."""
        await self._call(to_engine.PauseEngine(mode, reset_prefix_cache, timeout), timeout)

    async def resume(self) -> None:
        """See `Manager.resume`."""
        await self._call(to_engine.ResumeEngine())

    async def is_paused(self) -> bool:
        """Whether new requests are refused because of a pause."""
        return bool(await self._call(to_engine.IsPaused()))

    async def reset_prefix_cache(self, timeout: float = 5.0) -> int:
        """See `Manager.reset_prefix_cache`."""
        return int(await self._call(to_engine.ResetCache(timeout), timeout))

    async def audit(self, timeout: float = 30.0) -> AuditReport:
        """See `Manager.audit`."""
        report: AuditReport = await self._call(to_engine.AuditEngine(timeout), timeout)
        return report

    def fail_open(self, why: str) -> None:
        """End every pending request with EngineDeadError, and abort its requests in the engine."""
        for pending in list(self._pending.values()):
            self._release(pending, FinishReason.ERROR)
            pending.fail(EngineDeadError(why))

    async def shutdown(self) -> None:
        """Fail all pending requests and calls, end the engine process, remove the sockets. Idempotent."""
        self.fail_open("the engine is shutting down")
        if self._failure is None:
            self._failure = "the engine has been shut down"
        self._fail_calls()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.close()

    # -- the inside

    async def _call(self, call: to_engine.EngineCall, timeout: float = 0.0) -> Any:
        """Return or raise what the call returned or raised in the engine. timeout: seconds for the engine alone."""
        if self._failure is not None:
            raise EngineDeadError(self._failure)
        number = next(self._numbers)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        self._link.send(to_engine.Call(number, call))
        try:
            async with asyncio.timeout(timeout + ANSWER_MARGIN):
                return await future
        except TimeoutError:
            if not future.cancelled():  # raised in the engine, with a better message
                raise
            limit = timeout + ANSWER_MARGIN
            raise TimeoutError(f"the engine process has not answered within {limit:g} s") from None
        finally:
            del self._calls[number]

    def _fail_calls(self) -> None:
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineDeadError(self._failure))

    def _release(self, pending: PendingRequest, reason: FinishReason = FinishReason.ABORT) -> None:
        """Abort what is open of a pending request. reason: how the metrics count its open answers."""
        for request_id in pending.request_ids:
            if self.observer is not None and self._open.get(request_id, (None, 0))[0] is pending:
                ended = self._processor.give_up(request_id, reason, time.monotonic())
                if ended is not None:
                    self.observer.gave_up(ended)
        uids = self._forget(pending)
        if uids and self._failure is None:
            self._link.send(to_engine.Abort(uids))

    def _forget(self, pending: PendingRequest) -> list[int]:
        """Drop all records of a pending request; returns the uids that the engine still has."""
        self._pending.pop(pending.first_uid, None)
        uids: list[int] = []
        for request_id in pending.request_ids:
            if self._open.get(request_id, (None, 0))[0] is pending:
                del self._open[request_id]
                uids += self._processor.discard(request_id)
        return uids

    async def _receive(self) -> None:
        try:
            while True:
                self._handle(await self._link.receive())
        except Exception as error:  # after a message that cannot be read, no request can be trusted to end
            logger.exception("cannot follow the engine")
            self._die(f"cannot follow the engine: {type(error).__name__}: {error}")

    def _handle(self, message: to_client.ToClient) -> None:
        self._last_heard = time.monotonic()
        match message:
            case to_client.Step():
                self._step(message)
            case to_client.Status():
                self.snapshot = message.snapshot
                self._stalled = message.stalled
                if message.failure is not None:
                    self._die(message.failure)
            case to_client.Accepted(uid):
                if (pending := self._pending.get(uid)) is not None:
                    pending.accept()
                    self._drop_if_complete(pending)
            case to_client.Refused(uid, kind, text):
                if (pending := self._pending.get(uid)) is not None:
                    self._forget(pending)  # the engine has aborted the requests that it had accepted
                    pending.fail(refusal(kind, text))
            case to_client.Returned(number, value):
                if (future := self._calls.get(number)) is not None and not future.done():
                    future.set_result(value)
            case to_client.Raised(number, kind, text):
                if (future := self._calls.get(number)) is not None and not future.done():
                    future.set_exception(refusal(kind, text))

    def _step(self, step: to_client.Step) -> None:
        processed = self._processor.process(step.effects, self._last_heard)
        if processed.stop_uids:
            self._link.send(to_engine.Finish(processed.stop_uids))
        arrived: list[RequestDelta | RequestOutput] = [*processed.deltas, *processed.outputs]
        for output in arrived:
            request_id = output.request_id
            pending, index = self._open[request_id]
            if request_id in processed.shut_down:
                pending.fail(EngineDeadError("the request was aborted: the engine was shut down"))
            else:
                pending.take(Update(index, output))
            if output.finished:
                del self._open[request_id]
                self._drop_if_complete(pending)
        if self.observer is not None:
            self.observer.processed(processed)

    def _drop_if_complete(self, pending: PendingRequest) -> None:
        if pending.complete:
            self._pending.pop(pending.first_uid, None)

    async def _watch(self) -> None:
        self._die(f"the engine process has ended ({await self._link.ended()})")

    def _die(self, why: str) -> None:
        """The engine answers no more: fail all pending requests and calls, and refuse new ones."""
        if self._failure is not None:
            return
        self._failure = why
        self.fail_open(why)
        self._fail_calls()


async def _in_thread(work: Callable[[], T]) -> T:
    """Return what `work` returns on a daemon thread, which does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="headway-load", daemon=True).start()
    return await done
