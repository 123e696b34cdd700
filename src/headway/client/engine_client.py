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
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headway.client.cached_blocks import CachedBlocks, Forget, Learn
from headway.client.engine_calls import EngineCalls, NoAnswerError
from headway.client.engines import Observe
from headway.client.feed import window
from headway.client.in_thread import in_thread
from headway.client.kv_sources import FindSource
from headway.client.link import EngineStartError, Link, ProcessLink, unless_it_fails
from headway.client.open_requests import Observer, OpenRequests
from headway.client.pending_request import PendingRequest, RequestFailedError, Update
from headway.client.prompt_encoder import PromptEncoder
from headway.client.restart_budget import RestartBudget, Restarts
from headway.client.token_processor import TokenProcessor
from headway.client.totals import Counted, Totals
from headway.config import EngineConfig, PauseMode, SchedulerConfig
from headway.errors import EngineDeadError, EngineRestartingError, RequestError, ShuttingDownError
from headway.model_files import ModelFiles
from headway.placement import Placement
from headway.request import NewRequest
from headway.token_ids import pack
from headway.wire import to_client, to_engine
from headway.wire.checks import check_to_client
from headway.wire.to_client import AuditReport, KVEventCounts, Snapshot, TransferCounts
from headway.wire.uids import UID_BITS
from headway.wire.wire_errors import WireError, WireErrors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ONLY_ENGINE = "0"  # its name, where there are no others
PAUSE_TIMEOUT = 30.0  # seconds, of an engine that has just begun
SILENCE_LIMIT = 10.0  # seconds without a pulse after which an engine does not count as healthy

Reopen = Callable[[bool], Awaitable[tuple[Link, SchedulerConfig]]]  # starts an engine process, paused or not
logger = logging.getLogger(__name__)

__all__ = ["EngineClient", "EngineStartError", "Observer", "PendingRequest", "RequestFailedError", "Update"]


class EngineClient:
    """See the module. `start` makes it. Not thread-safe: all calls come from the event loop that started it.

    If the engine dies, all pending requests fail, and so does every new one. Within the budget of restarts a new engine
    process is started; it gets none of the old requests, and is paused if the old one was.

    reopen: starts an engine process once the old one is gone. restarts: how often it may be called.
    prompts: tokenises texts; an encoder that is given is others' too, and they close it.
    requests: in progress. capacity: the most answers that the engine holds.
    placement: where the engine computes. address: where clients of other machines reach it; tells_cache: whether
        it says which blocks it holds; see `Ready`.
    dead: set when the engine has died for good; `why_unhealthy` says of what.
    wire_errors: messages to this process that were dropped. num_restarts: of the engine process.
    num_pulses: how often the engine has said its numbers. last_heard: seconds, `time.monotonic`.
    """

    def __init__(
        self,
        *,
        files: ModelFiles,
        tokenizer: PreTrainedTokenizerBase,
        config: SchedulerConfig,
        link: Link,
        index: int = 0,
        observer: Observer | None = None,
        reopen: Reopen | None = None,
        restarts: Restarts | None = None,
        max_waiting: int = EngineConfig().max_waiting,
        placement: Placement | None = None,
        address: str | None = None,
        tells_cache: bool = False,
        prompts: PromptEncoder | None = None,
    ) -> None:
        self.files = files
        self.tokenizer = tokenizer
        self.config = config
        self.placement = placement or Placement()
        self.address = address
        self.tells_cache = tells_cache
        self._cached: CachedBlocks | None = None
        self._index = index
        self.wire_errors = WireErrors("client")
        self.num_restarts = 0
        self.dead = asyncio.Event()
        self.capacity = config.max_num_seqs + max_waiting
        self._own_prompts = prompts is None
        self.prompts = prompts or PromptEncoder(tokenizer, config.max_model_len)
        self._link = link
        self._reopen = reopen
        self._restarts: Restarts = restarts or RestartBudget()
        self._totals = Totals()
        self.requests = OpenRequests(
            TokenProcessor(tokenizer, files.limits.eos_token_ids),
            self._send,
            first_uid=index << UID_BITS,
            window=window(config.max_num_seqs),
            capacity=self.capacity,
            observer=observer,
        )
        self._calls = EngineCalls(self._send, first=index << UID_BITS)
        self._stalled = False
        self._failure: str | None = None
        self._restarting = False
        self._shut_down = False
        self._paused = False  # whether the operator wants the engine to be paused
        self._num_pauses = 0
        self.num_pulses = 0
        self.last_heard = time.monotonic()
        self._life = asyncio.create_task(self._live())

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        *,
        engine_args: Sequence[str] = (),
        restarts: RestartBudget | None = None,
        listen: str | None = None,
        tells_cache: bool = False,
    ) -> EngineClient:
        """Start an engine process and wait until it takes requests.

        engine_args: for the engine process, see `python -m headway.engine.process --help`.
        restarts: how often the engine may be restarted if it dies; None: never.
        tells_cache: see `Launch`.
        listen: see `Launch`; then the engine cannot be restarted, as its other clients would not find it.
        Raises EngineStartError, or ValueError for a model that cannot be served.
        """
        async with unless_it_fails(await ProcessLink.open(engine_args)) as link:
            files = await in_thread(partial(ModelFiles.resolve, config))  # while the engine process imports libraries
            # The engine gets the folder, so that the two can never read different revisions of a hub model.
            found = replace(config, model=str(files.path), served_model_name=files.name)
            link.launch(found, files.limits, listen=listen, tells_cache=tells_cache)
            logger.info("found the model in %s; loading its tokenizer", files.path)
            tokenizer = await in_thread(files.load_tokenizer)
            ready = await link.wait_ready()

        async def reopen(paused: bool) -> tuple[Link, SchedulerConfig]:
            async with unless_it_fails(await ProcessLink.open(engine_args)) as link:
                link.launch(found, files.limits, paused=paused)
                return link, (await link.wait_ready()).config

        _log_ready(link, ready.config)
        return cls(
            files=files,
            tokenizer=tokenizer,
            config=ready.config,
            link=link,
            reopen=reopen,
            restarts=restarts,
            max_waiting=config.max_waiting,
            placement=ready.placement,
            address=ready.address,
        )

    def check_num_answers(self, num_prompts: int, n: int) -> None:
        """Raises RequestError for more answers than the engine can ever hold."""
        check_num_answers(num_prompts, n, self.capacity, self.config.max_num_seqs)

    @property
    def engines(self) -> Mapping[str, EngineClient]:
        """See `Engines`: it is the only one."""
        return {ONLY_ENGINE: self}

    @property
    def snapshot(self) -> Snapshot:
        """The last numbers of the engine. Its counters go on over restarts."""
        return self._totals.snapshot

    @property
    def transfers(self) -> TransferCounts | None:
        """The last counts of the engine's connector, which go on over restarts; None if the engine moves no KV."""
        return self._totals.transfers

    @property
    def kv_events(self) -> KVEventCounts | None:
        """Batches of KV events, counted on over restarts; None if the engine publishes none."""
        return self._totals.kv_events

    @property
    def num_engine_wire_errors(self) -> int:
        """Messages to the engine that it has dropped."""
        return self._totals.num_wire_errors

    @property
    def num_open(self) -> int:
        """Pending requests that are neither complete nor closed."""
        return len(self.requests)

    @property
    def num_added(self) -> int:
        """Client requests that were given to the engine."""
        return self.requests.num_added

    @property
    def retried(self) -> Mapping[str, int]:
        """See `Engines`: there is no other."""
        return {}

    def observe(self, observe: Observe) -> None:
        """See `Engines`."""
        self.requests.observer = observe(ONLY_ENGINE)

    @property
    def engine_pid(self) -> int:
        """The process id of the engine."""
        return self._link.pid

    def follow_cache(self, learn: Learn, forget: Forget) -> None:
        """From now on the engine says which blocks its cache holds; see `CachedBlocks`. Only where `tells_cache`."""

        def ask() -> None:
            self._send(to_engine.TellCache(self._index))

        self._cached = CachedBlocks(ask, learn, forget, self.config.num_blocks)

    def why_unhealthy(self) -> str | None:
        """Why the engine is not healthy now (dead, stalled or silent), in one line; None if it is healthy."""
        if self._failure is not None:
            return self._failure
        if self._stalled:
            return "the engine has work and makes no progress"
        silence = time.monotonic() - self.last_heard
        if silence > SILENCE_LIMIT:
            return f"the engine process has not answered for {silence:.0f} seconds"
        return None

    def why_refused(self) -> EngineDeadError | None:
        """The error of requests and calls while there is no engine; None: there is one."""
        return None if self._failure is None else self._refusal()

    def pack(self, token_ids: Sequence[int]) -> NDArray[np.int32]:
        """Token ids as `NewRequest.prompt`. Raises RequestError for an id that the model does not have."""
        return pack(token_ids, self.files.limits.vocab_size)

    def submit(
        self,
        requests: Sequence[NewRequest],
        *,
        stream: bool,
        source: FindSource | None = None,
        shown: Sequence[str] = (),
    ) -> PendingRequest:
        """Send the prompts of one client request; returns at once. A large one goes to the engine in slices.

        requests: with prompts that `pack` made and request ids that are not in use; this object gives the uids.
        stream: True: updates bring deltas; False: complete outputs.
        source: of the KV of the only prompt, which pulls; it is asked when the engine has blocks. None: such a prompt
            brings `kv_transfer_params`.
        shown: special tokens that are in the text of the answers, although special tokens are left out.

        Raises DuplicateRequestError, QueueFullError, EngineDeadError or EngineRestartingError. The engine finds all
        other errors of a request; iterating the result raises them.
        """
        self._check_alive()
        return self.requests.add(requests, stream=stream, source=source, shown=shown)

    async def pause(self, mode: PauseMode = "abort", *, reset_prefix_cache: bool = True, timeout: float = 30.0) -> None:
        """See `Manager.pause`. Like every call it also raises EngineDeadError if the engine stops before it answers,
        and TimeoutError if no answer comes; then the pause is withdrawn.

        If the engine dies meanwhile and is restarted, it begins paused.
        """
        self._check_alive()
        before, self._paused = self._paused, True
        self._num_pauses += 1
        number = self._num_pauses
        try:
            await self._call(to_engine.PauseEngine(mode, reset_prefix_cache, timeout), timeout)
        except NoAnswerError as error:
            if before or number != self._num_pauses:  # another pause wants the same
                raise
            self._paused = False
            self._calls.tell(to_engine.ResumeEngine())
            raise TimeoutError(f"{error}; the pause is withdrawn") from None
        except ValueError:  # refused
            self._paused = before
            raise

    def begin_after(self, before: Counted) -> None:
        """The engine has lived before, as far as its owner knows: its counters go on from there."""
        self._totals.begin(before)
        self.num_restarts = before.num_lives

    def begin_paused(self, paused: bool) -> None:
        """Whether an engine that is being restarted begins paused."""
        self._paused = paused

    async def resume(self) -> None:
        """See `Manager.resume`."""
        await self._call(to_engine.ResumeEngine())
        self._paused = False

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

    def detach(self, client: int) -> None:
        """A client that has attached itself to the engine is gone: what is open of it is aborted."""
        self._send(to_engine.Detach(client))

    def fail_open(self) -> None:
        """End every pending request with ShuttingDownError, and abort its requests in the engine."""
        self.requests.fail(lambda: ShuttingDownError("the server is shutting down"))

    async def shutdown(self) -> None:
        """Fail all pending requests and calls, end the engine process, remove the sockets. Idempotent."""
        self.fail_open()
        self._shut_down = True
        if self._failure is None:
            self._failure = "the engine has been shut down"
        self._calls.fail(self._refusal)
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)
        if self._own_prompts:
            self.prompts.texts.close()
        await self._link.close()

    # -- the inside

    def _send(self, message: to_engine.ToEngine) -> None:
        if self._failure is None:  # else there is no engine
            self._link.send(message)

    async def _call(self, call: to_engine.EngineCall, timeout: float = 0.0) -> Any:
        self._check_alive()
        return await self._calls.call(call, timeout)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._refusal()

    def _refusal(self) -> EngineDeadError:
        """The error of requests and calls while there is no engine."""
        if self._shut_down:
            return ShuttingDownError(self._failure)
        return EngineRestartingError(self._failure) if self._restarting else EngineDeadError(self._failure)

    async def _receive(self) -> str:
        """Take what the engine says until it tells of its failure; returns that."""
        while True:
            try:
                message = await self._link.receive()
                check_to_client(message, self.files.limits.vocab_size)
            except WireError as error:
                self.wire_errors.note(error)
                continue
            self._handle(message)
            await asyncio.sleep(0)  # a message a turn, also where many wait
            if isinstance(message, to_client.Status) and message.failure is not None:
                return message.failure

    def _handle(self, message: to_client.ToClient) -> None:
        self.last_heard = time.monotonic()
        match message:
            case to_client.Step():
                self.requests.step(message, self.last_heard)
            case to_client.Status():
                self.num_pulses += 1
                self._totals.take(message)
                self._stalled = message.stalled
            case to_client.CacheNews():
                if self._cached is not None:
                    self._cached.take(message)
            case to_client.Lends(uid, params):
                self.requests.lends(uid, params)
            case to_client.Accepted(uid):
                self.requests.accepted(uid)
            case to_client.Refused():
                self.requests.refused(message)
            case to_client.Returned() | to_client.Raised():
                self._calls.take(message)

    async def _live(self) -> None:
        """Follow the engine. When it dies, restart it as often as the budget allows; then tell that it is dead."""
        try:
            while self._die(await self._follow()):
                while not await self._restart():
                    pass
        finally:
            self.dead.set()

    async def _follow(self) -> str:
        """Take the engine's messages until it dies; returns of what, in one line."""
        receiving = asyncio.ensure_future(self._receive())
        ended = asyncio.ensure_future(self._link.ended())
        try:
            await asyncio.wait({receiving, ended}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                return receiving.result()
            return f"the engine process has ended ({ended.result()})"
        except Exception as error:  # after a message that cannot be carried out, no request can be trusted to end
            logger.exception("cannot follow the engine")
            return f"cannot follow the engine: {type(error).__name__}: {error}"
        finally:
            for task in (receiving, ended):
                task.cancel()
            await asyncio.gather(receiving, ended, return_exceptions=True)

    def _die(self, why: str) -> bool:
        """There is no engine any more: fail all pending requests and calls, and refuse new ones. Returns whether the
        engine may be restarted."""
        budget = self._restarts
        self._restarting = self._reopen is not None and budget.take(time.monotonic())
        then = "it is restarted" if self._restarting else "it is not restarted"
        logger.critical(
            "the engine died: %s; %d open requests fail; %s (%s)",
            *(why, self.num_open, then, budget),
        )
        self._failure = f"{why}; the engine is being restarted" if self._restarting else why
        self._totals.end(paused=self._paused)
        self._stalled = False
        self.requests.fail(self._refusal)
        self._calls.fail(self._refusal)
        return self._restarting

    async def _restart(self) -> bool:
        """Start an engine process in the place of the dead one. False: it does not start; try again. Raises
        EngineStartError when the budget is used up."""
        assert self._reopen is not None
        await self._link.close(kill=True)  # returns when the process is gone, and its memory with it
        paused = self._paused
        try:
            self._link, self.config = await self._reopen(paused)
        except (EngineStartError, ValueError, OSError) as error:
            if not self._die(f"the engine could not be restarted: {error}"):
                raise
            return False
        self.num_restarts += 1
        self.last_heard = time.monotonic()
        self._failure, self._restarting = None, False
        if self._paused and not paused:  # the operator has changed it meanwhile
            self._calls.tell(to_engine.PauseEngine("abort", False, PAUSE_TIMEOUT))
        elif paused and not self._paused:
            self._calls.tell(to_engine.ResumeEngine())
        _log_ready(self._link, self.config)
        return True


def check_num_answers(num_prompts: int, n: int, capacity: int, max_num_seqs: int) -> None:
    """Raises RequestError for more answers than an engine of this capacity can ever hold."""
    if num_prompts * n > capacity:
        raise RequestError(
            f"{num_prompts} prompts x n = {n} are {num_prompts * n} answers; this server holds at most {capacity} "
            f"(max_num_seqs {max_num_seqs} + max_waiting {capacity - max_num_seqs}): send fewer prompts in one request"
        )


def _log_ready(link: Link, config: SchedulerConfig) -> None:
    logger.info(
        "the engine is ready: process %d; at most %d tokens a request, %d requests at once, %d tokens a step; KV cache "
        "of %d blocks of %d tokens",
        *(link.pid, config.max_model_len, config.max_num_seqs, config.max_num_batched_tokens),
        *(config.num_blocks - 1, config.block_size),
    )
