"""The engine as an API process sees it: an asyncio object that starts the engine process and talks to it.

    client = await EngineClient.start(config)
    with client.submit([Prompt([1, 2, 3])], SamplingParams(), request_id="a", stream=True) as generation:
        async for events in generation:  # everything new since the last time
            ...
    await client.shutdown()

Everything runs on one event loop: the sockets, the token processor, the open generations. Leaving the `with` block
early, for whatever reason, aborts what is unfinished; so a client that went away costs no more steps.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from headway.config import EngineConfig
from headway.engine import wire
from headway.engine.link import EngineStartError, Link, ProcessLink
from headway.engine.token_processor import Processed, RequestDelta, TokenProcessor, expand
from headway.executor.model_files import ModelFiles
from headway.request import EngineDeadError, FinishReason, RequestError, RequestOutput, SamplingParams
from headway.scheduler.messages import Snapshot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SILENCE_LIMIT = 10.0  # seconds without a pulse after which an engine does not count as healthy
LONG_TEXT = 4096  # characters, which take about a millisecond to tokenise

T = TypeVar("T")
logger = logging.getLogger(__name__)

__all__ = ["EngineClient", "EngineStartError", "Event", "Generation", "GenerationError", "Observer", "Prompt"]


class GenerationError(RuntimeError):
    """An accepted request could not be completed. HTTP 500."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """token_ids: what the model reads. text: where it came from, if it was a text."""

    token_ids: list[int]
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """News of prompt `prompt_index` of a generation: a delta when streaming, else the complete output."""

    prompt_index: int
    news: RequestDelta | RequestOutput


class Observer(Protocol):
    """Who wants to know what the engine does, for metrics. Called on the event loop; must not block."""

    def processed(self, processed: Processed) -> None:
        """Once per message of the engine that carried tokens or ends."""


class Generation:
    """One client request in progress: one or more prompts, each with `sampling.n` answers, that share their fate.

    Iterating gives lists of events in order and ends when every answer is complete. It raises RequestError,
    DuplicateRequestError, QueueFullError or EngineDeadError if the engine refuses, GenerationError if an answer ends
    in an error; the rest is aborted then. Until a group of several is known to be accepted whole, no event is shown.
    """

    def __init__(self, client: EngineClient, first_uid: int, request_ids: Sequence[str], *, accepted: bool) -> None:
        self._client = client
        self.first_uid = first_uid  # by which the engine names the group
        self.request_ids = tuple(request_ids)  # of the prompts, in order
        self._unfinished = set(request_ids)
        self._accepted = accepted
        self._events: list[Event] = []
        self._error: Exception | None = None
        self._wake = asyncio.Event()

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[Event]:
        while True:
            if self._error is not None:
                raise self._error
            if self._accepted and self._events:
                events, self._events = self._events, []
                return events
            if self.complete:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()

    @property
    def complete(self) -> bool:
        """Whether nothing is to come any more; what has come may still have to be fetched."""
        return self._accepted and not self._unfinished

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abort what is unfinished. Idempotent."""
        self._client._release(self)

    # -- what the client tells it

    def _take(self, event: Event) -> None:
        failure = _failure_of(event.news)
        if failure is not None:
            # An abort of what is not accepted belongs to the group's refusal, which is on its way.
            if self._accepted or isinstance(failure, GenerationError):
                self._fail(failure)
            return
        self._events.append(event)
        if event.news.finished:
            self._unfinished.discard(event.news.request_id)
        self._wake.set()

    def _accept(self) -> None:
        self._accepted = True
        self._wake.set()

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._wake.set()


def _failure_of(news: RequestDelta | RequestOutput) -> Exception | None:
    answers = [news] if isinstance(news, RequestDelta) else news.outputs
    for answer in answers:
        if answer.finish_reason is FinishReason.ERROR:
            return GenerationError(answer.error or "the request failed")
        if answer.finish_reason is FinishReason.ABORT:
            return EngineDeadError("the request was aborted: the engine is shutting down")
    return None


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

    def submit(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        *,
        request_id: str,
        stream: bool,
        priority: int = 0,
        cache_salt: str | None = None,
        arrival_time: float | None = None,
    ) -> Generation:
        """Hand in one client request; returns at once.

        request_id: must not be in use; prompt i of several is known as "<request_id>-<i>".
        arrival_time: of the client's request, `time.monotonic`; None is now.

        Raises RequestError for a token id out of range, DuplicateRequestError, or EngineDeadError. Everything else that
        may be wrong with a request the engine finds, and iterating raises it.
        """
        if self._failure is not None:
            raise EngineDeadError(self._failure)
        packed = [self._pack(prompt) for prompt in prompts]
        now = time.monotonic() if arrival_time is None else arrival_time
        single = len(prompts) == 1
        request_ids = [request_id if single else f"{request_id}-{i}" for i in range(len(prompts))]
        generation = Generation(self, self._next_uid, request_ids, accepted=single and sampling.n == 1)
        adds: list[wire.Add] = []
        try:
            for index, (prompt, prompt_id) in enumerate(zip(prompts, request_ids, strict=True)):
                uids = range(self._next_uid, self._next_uid + sampling.n)
                self._next_uid += sampling.n
                self._processor.add(
                    prompt_id,
                    uids,
                    sampling,
                    prompt=prompt.text,
                    prompt_token_ids=prompt.token_ids,
                    now=now,
                    stream=stream,
                )
                self._open[prompt_id] = (generation, index)
                adds += [
                    wire.Add(uid, answer_id, packed[index], answer_sampling, priority, cache_salt)
                    for uid, (answer_id, answer_sampling) in zip(uids, expand(prompt_id, sampling), strict=True)
                ]
        except BaseException:
            self._forget(generation)
            raise
        self._generations[generation.first_uid] = generation
        self._link.send(wire.AddGroup(adds))
        return generation

    def fail_open(self, why: str) -> None:
        """End every open generation with EngineDeadError, and abort what the engine has of it."""
        for generation in list(self._generations.values()):
            self._release(generation)
            generation._fail(EngineDeadError(why))

    async def shutdown(self) -> None:
        """Fail what is open, end the engine process, remove the sockets. Idempotent."""
        self.fail_open("the engine is shutting down")
        if self._failure is None:
            self._failure = "the engine has been shut down"
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.close()

    # -- the inside

    def _pack(self, prompt: Prompt) -> bytes:
        # Checked here and not only by the engine, because the token processor is about to read them.
        for token in (min(prompt.token_ids, default=0), max(prompt.token_ids, default=0)):
            if not 0 <= token < self.files.vocab_size:
                raise RequestError(
                    f"the prompt contains token id {token}; ids go from 0 to {self.files.vocab_size - 1}"
                )
        return wire.pack_tokens(prompt.token_ids)

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
                    generation._accept()
                    self._drop_if_complete(generation)
            case wire.Rejected(uid, kind, text):
                if (generation := self._generations.get(uid)) is not None:
                    self._forget(generation)  # the engine has taken back what it had accepted of it
                    generation._fail(wire.refusal(kind, text))

    def _step(self, step: wire.Step) -> None:
        processed = self._processor.process(wire.unpack_effects(step), self._last_heard)
        if processed.stop_uids:
            self._link.send(wire.Finish(processed.stop_uids))
        arrived: list[RequestDelta | RequestOutput] = [*processed.deltas, *processed.outputs]
        for news in arrived:
            request_id = news.request_id
            generation, index = self._open[request_id]
            generation._take(Event(index, news))
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
