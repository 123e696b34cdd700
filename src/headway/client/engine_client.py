"""The engine as an API process sees it: an asyncio object that starts the engine process and talks to it.

    client = await EngineClient.start(config)
    request = NewRequest(request_id="a", prompt=client.pack([1, 2, 3]), sampling=SamplingParams())
    with client.submit([request], stream=True) as generation:
        async for events in generation:  # everything new since the last time
            ...
    await client.shutdown()

Everything runs on one event loop: the sockets, the token processor, the open generations. Leaving the `with` block
early, for whatever reason, aborts what is unfinished; so a client that went away costs no more steps.
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

from headway import wire
from headway.client.generation import Event, Generation, GenerationError
from headway.client.link import EngineStartError, Link, ProcessLink
from headway.client.token_processor import Processed, TokenProcessor, expand
from headway.config import EngineConfig, PauseMode
from headway.errors import EngineDeadError
from headway.model_files import ModelFiles
from headway.outputs import RequestDelta, RequestOutput
from headway.request import NewRequest
from headway.scheduler.audit import AuditReport
from headway.scheduler.snapshot import Snapshot
from headway.token_ids import pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SILENCE_LIMIT = 10.0  # seconds without a pulse after which an engine does not count as healthy
ANSWER_MARGIN = 5.0  # seconds more than the engine may take that its answer may take to arrive
LONG_TEXT = 4096  # characters, which take about a millisecond to tokenise

T = TypeVar("T")
logger = logging.getLogger(__name__)

__all__ = ["EngineClient", "EngineStartError", "Event", "Generation", "GenerationError", "Observer"]


class Observer(Protocol):
    """Who wants to know what the engine does, for metrics. Called on the event loop; must not block."""

    def processed(self, processed: Processed) -> None:
        """Once per message of the engine that carried tokens or ends."""


class EngineClient:
    """See the module. Make it with `start`; not thread safe, all calls on the loop that started it."""

    def __init__(
        self,
        *,
        files: ModelFiles,
        tokenizer: PreTrainedTokenizerBase,
        ready: wire.Ready,
        link: Link,
        index: int = 0,
        observer: Observer | None = None,
    ) -> None:
        self.files = files
        self.tokenizer = tokenizer
        self.limits = ready
        self.snapshot = Snapshot()
        self.observer = observer
        self._link = link
        self._processor = TokenProcessor(tokenizer, files.eos_token_ids)
        self._next_uid = index << wire.UID_BITS
        self._numbers = itertools.count(index << wire.UID_BITS)
        self._questions: dict[int, asyncio.Future[Any]] = {}  # those not answered yet, by their number
        self._open: dict[str, tuple[Generation, int]] = {}  # request id -> generation, index of the prompt in it
        self._generations: dict[int, Generation] = {}  # those neither complete nor closed, by their first uid
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
            files = await _in_thread(partial(ModelFiles.resolve, config))  # while the process imports what it needs
            # The engine gets the folder, so that the two can never read different revisions of a hub model.
            link.launch(
                replace(config, model=str(files.path), served_model_name=files.name),
                wire.ModelFacts(files.vocab_size, files.max_model_len, files.eos_token_ids),
            )
            tokenizer = await _in_thread(files.load_tokenizer)
            ready = await link.wait_ready()
        except BaseException:
            await link.close(kill=True)
            raise
        return cls(files=files, tokenizer=tokenizer, ready=ready, link=link)

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The text's token ids; a long text is left to another thread, so that the loop goes on."""
        encode = partial(self.tokenizer.encode, text, add_special_tokens=add_special_tokens, verbose=False)
        return await asyncio.to_thread(encode) if len(text) > LONG_TEXT else encode()

    @property
    def num_open(self) -> int:
        """Generations that are neither complete nor closed."""
        return len(self._generations)

    @property
    def engine_pid(self) -> int:
        """The process id of the engine."""
        return self._link.pid

    def why_unhealthy(self) -> str | None:
        """Why the engine cannot be relied on now; None when it can."""
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
        return pack(token_ids, self.files.vocab_size)

    def submit(self, requests: Sequence[NewRequest], *, stream: bool) -> Generation:
        """Hand in the prompts of one client request; returns at once. They share their fate.

        requests: prompts as `pack` makes them, ids that are not in use; the client gives the uids.
        stream: show every change, or only the complete outputs.

        Raises DuplicateRequestError or EngineDeadError. Everything else that may be wrong with a request the engine
        finds, and iterating raises it.
        """
        if self._failure is not None:
            raise EngineDeadError(self._failure)
        now = time.monotonic()
        request_ids = [request.request_id for request in requests]
        num_answers = sum(request.sampling.n for request in requests)
        generation = Generation(self._release, self._next_uid, request_ids, accepted=num_answers == 1)
        answers: list[NewRequest] = []
        try:
            for index, request in enumerate(requests):
                uids = range(self._next_uid, self._next_uid + request.sampling.n)
                self._next_uid += len(uids)
                arrival_time = now if request.arrival_time is None else request.arrival_time
                self._processor.add(request, uids, now=arrival_time, stream=stream)
                self._open[request.request_id] = (generation, index)
                answers += expand(request, uids)
        except BaseException:
            self._forget(generation)
            raise
        self._generations[generation.first_uid] = generation
        self._link.send(wire.AddGroup(answers))
        return generation

    async def pause(self, mode: PauseMode = "abort", *, reset_prefix_cache: bool = True, timeout: float = 30.0) -> None:
        """See `Engine.pause`. Like every question, it also raises EngineDeadError if the engine stops meanwhile, and
        TimeoutError if no answer comes."""
        await self._ask(wire.Pause(mode, reset_prefix_cache, timeout), timeout)

    async def resume(self) -> None:
        """See `Engine.resume`."""
        await self._ask(wire.Resume())

    async def is_paused(self) -> bool:
        """See `Engine.is_paused`."""
        return bool(await self._ask(wire.IsPaused()))

    async def reset_prefix_cache(self, timeout: float = 5.0) -> int:
        """See `Engine.reset_prefix_cache`."""
        return int(await self._ask(wire.ResetPrefixCache(timeout), timeout))

    async def audit(self, timeout: float = 30.0) -> AuditReport:
        """See `Engine.audit`."""
        report: AuditReport = await self._ask(wire.Audit(timeout), timeout)
        return report

    def fail_open(self, why: str) -> None:
        """End every open generation with EngineDeadError, and abort what the engine has of it."""
        for generation in list(self._generations.values()):
            self._release(generation)
            generation.fail(EngineDeadError(why))

    async def shutdown(self) -> None:
        """Fail what is open, end the engine process, remove the sockets. Idempotent."""
        self.fail_open("the engine is shutting down")
        if self._failure is None:
            self._failure = "the engine has been shut down"
        self._fail_questions()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.close()

    # -- the inside

    async def _ask(self, question: wire.Question, timeout: float = 0.0) -> Any:
        """The answer, or what the engine raised. timeout: seconds that the engine itself may take."""
        if self._failure is not None:
            raise EngineDeadError(self._failure)
        number = next(self._numbers)
        future = self._questions[number] = asyncio.get_running_loop().create_future()
        self._link.send(wire.Ask(number, question))
        try:
            async with asyncio.timeout(timeout + ANSWER_MARGIN):
                return await future
        except TimeoutError:
            if not future.cancelled():  # it is the engine's own, which says more
                raise
            limit = timeout + ANSWER_MARGIN
            raise TimeoutError(f"the engine process has not answered within {limit:g} s") from None
        finally:
            del self._questions[number]

    def _fail_questions(self) -> None:
        for future in self._questions.values():
            if not future.done():
                future.set_exception(EngineDeadError(self._failure))

    def _release(self, generation: Generation) -> None:
        uids = self._forget(generation)
        if uids and self._failure is None:
            self._link.send(wire.Abort(uids))

    def _forget(self, generation: Generation) -> list[int]:
        """Drop every trace of a generation; returns the uids that the engine still has."""
        self._generations.pop(generation.first_uid, None)
        uids: list[int] = []
        for request_id in generation.request_ids:
            if self._open.get(request_id, (None, 0))[0] is generation:
                del self._open[request_id]
                uids += self._processor.discard(request_id)
        return uids

    async def _receive(self) -> None:
        try:
            while True:
                self._handle(await self._link.receive())
        except Exception as error:  # a message that cannot be read means that nothing can be relied on
            logger.exception("cannot follow the engine")
            self._die(f"cannot follow the engine: {type(error).__name__}: {error}")

    def _handle(self, message: wire.ToClient) -> None:
        self._last_heard = time.monotonic()
        match message:
            case wire.Step():
                self._step(message)
            case wire.Status():
                self.snapshot = message.snapshot
                self._stalled = message.stalled
                if message.failure is not None:
                    self._die(message.failure)
            case wire.Accepted(uid):
                if (generation := self._generations.get(uid)) is not None:
                    generation.accept()
                    self._drop_if_complete(generation)
            case wire.Rejected(uid, kind, text):
                if (generation := self._generations.get(uid)) is not None:
                    self._forget(generation)  # the engine has taken back what it had accepted of it
                    generation.fail(wire.refusal(kind, text))
            case wire.Answered(number, answer):
                if (future := self._questions.get(number)) is not None and not future.done():
                    future.set_result(answer)
            case wire.Refused(number, kind, text):
                if (future := self._questions.get(number)) is not None and not future.done():
                    future.set_exception(wire.refusal(kind, text))

    def _step(self, step: wire.Step) -> None:
        processed = self._processor.process(wire.unpack_effects(step), self._last_heard)
        if processed.stop_uids:
            self._link.send(wire.Finish(processed.stop_uids))
        arrived: list[RequestDelta | RequestOutput] = [*processed.deltas, *processed.outputs]
        for news in arrived:
            request_id = news.request_id
            generation, index = self._open[request_id]
            generation.take(Event(index, news))
            if news.finished:
                del self._open[request_id]
                self._drop_if_complete(generation)
        if self.observer is not None:
            self.observer.processed(processed)

    def _drop_if_complete(self, generation: Generation) -> None:
        if generation.complete:
            self._generations.pop(generation.first_uid, None)

    async def _watch(self) -> None:
        self._die(f"the engine process has ended ({await self._link.ended()})")

    def _die(self, why: str) -> None:
        """The engine will answer no more: fail what is open, refuse what comes."""
        if self._failure is not None:
            return
        self._failure = why
        self.fail_open(why)
        self._fail_questions()


async def _in_thread(work: Callable[[], T]) -> T:
    """What `work` returns, from a thread that does not keep the process when it is told to end meanwhile."""
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
