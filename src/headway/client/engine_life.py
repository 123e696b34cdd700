"""The life of an engine as a client of it sees it: one engine process, and after its death the next.

An engine lives while its process does what it should. A process that ends, says that it has failed, or says what cannot
be carried out, counts as dead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from headway.client.cached_blocks import CachedBlocks
from headway.client.engine_calls import EngineCalls
from headway.client.link import EngineStartError, Link
from headway.client.open_requests import OpenRequests
from headway.client.restart_budget import Restarts
from headway.client.totals import Counted, Totals
from headway.config import SchedulerConfig
from headway.errors import EngineDeadError, EngineRestartingError, ShuttingDownError
from headway.wire import to_client, to_engine
from headway.wire.checks import check_to_client
from headway.wire.wire_errors import WireError, WireErrors

PAUSE_TIMEOUT = 30.0  # seconds, of an engine that has just begun
SILENCE_LIMIT = 10.0  # seconds without a pulse after which an engine does not count as healthy

Reopen = Callable[[bool], Awaitable[tuple[Link, SchedulerConfig]]]  # starts an engine process, paused or not
logger = logging.getLogger(__name__)


class EngineLife:
    """Hands on what the engine says. When it dies, all requests and calls in progress fail; within the budget of
    restarts a new engine process is started. It gets none of the old requests, and begins paused if `paused`.

    Begins at once, on the running event loop; only that loop uses it. `end` ends it.

    link: to the present engine process. config: its limits. requests, calls: in progress; they get what the engine
    says. vocab_size: of the model.
    reopen: starts an engine process once the old one is gone; None: it cannot be started again. restarts: how often
    `reopen` may be called.

    dead: set when the engine has died for good. paused: whether the operator wants the engine to be paused.
    cached: gets what the engine says of its cache; None: it is not asked.
    totals: the numbers of the engine. wire_errors: messages to this process that were dropped.
    num_restarts: of the engine process. num_pulses: how often the engine has said its numbers.
    last_heard: seconds, `time.monotonic`.
    """

    def __init__(
        self,
        link: Link,
        config: SchedulerConfig,
        *,
        requests: OpenRequests,
        calls: EngineCalls,
        vocab_size: int,
        reopen: Reopen | None,
        restarts: Restarts,
    ) -> None:
        self.link = link
        self.config = config
        self.dead = asyncio.Event()
        self.paused = False
        self.cached: CachedBlocks | None = None
        self.totals = Totals()
        self.wire_errors = WireErrors("client")
        self.num_restarts = 0
        self.num_pulses = 0
        self.last_heard = time.monotonic()
        self._requests = requests
        self._calls = calls
        self._vocab_size = vocab_size
        self._reopen = reopen
        self._restarts = restarts
        self._told_meanwhile = False  # whether `begin_paused` was called while no engine was there
        self._stalled = False
        self._refusal: Callable[[], EngineDeadError] | None = None  # makes the errors while there is no engine
        self._task = asyncio.create_task(self._live())

    def begin_after(self, before: Counted, pulse: to_client.Status | None) -> None:
        """The engine has lived before: its counters go on from there. pulse: of its present life."""
        self.totals.begin(before)
        if pulse is not None:
            self.totals.take(pulse)
        self.num_restarts = before.num_lives

    def begin_paused(self, paused: bool) -> None:
        """Whether an engine that is being restarted begins paused."""
        self.paused, self._told_meanwhile = paused, True

    def send(self, message: to_engine.ToEngine) -> None:
        """Send a message to the engine, if there is one."""
        if self._refusal is None:
            self.link.send(message)

    def why_unhealthy(self) -> str | None:
        """Why the engine is not healthy now (dead, stalled or silent), in one line; None if it is healthy."""
        if self._refusal is not None:
            return str(self._refusal())
        if self._stalled:
            return "the engine has work and makes no progress"
        silence = time.monotonic() - self.last_heard
        if silence > SILENCE_LIMIT:
            return f"the engine process has not answered for {silence:.0f} seconds"
        return None

    def why_refused(self) -> EngineDeadError | None:
        """The error of requests and calls while there is no engine; None: there is one."""
        return None if self._refusal is None else self._refusal()

    def check_alive(self) -> None:
        """Raises EngineDeadError, or one of its kinds, while there is no engine."""
        if self._refusal is not None:
            raise self._refusal()

    async def end(self) -> None:
        """Fail all calls that wait, end the engine process, remove the sockets. Idempotent."""
        why = "the engine has been shut down" if self._refusal is None else str(self._refusal())
        self._refusal = partial(ShuttingDownError, why)
        self._calls.fail(self._refusal)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.link.close()

    # -- the inside

    async def _live(self) -> None:
        """Follow the engine. When it dies, restart it as often as the budget allows; then tell that it is dead."""
        try:
            why = await self._follow()
            while self._die(why):
                why = await self._restart() or await self._follow()
        finally:
            self.dead.set()

    async def _follow(self) -> str:
        """Take the engine's messages until it dies; returns of what, in one line."""
        receiving = asyncio.ensure_future(self._receive())
        ended = asyncio.ensure_future(self.link.ended())
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

    async def _receive(self) -> str:
        """Take what the engine says until it tells of its failure; returns that."""
        while True:
            try:
                message = await self.link.receive()
                check_to_client(message, self._vocab_size)
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
                self._requests.step(message, self.last_heard)
            case to_client.Status():
                self.num_pulses += 1
                self.totals.take(message)
                self._stalled = message.stalled
            case to_client.CacheNews():
                if self.cached is not None:
                    self.cached.take(message)
            case to_client.Lends(uid, params):
                self._requests.lends(uid, params)
            case to_client.Accepted(uid):
                self._requests.accepted(uid)
            case to_client.Refused():
                self._requests.refused(message)
            case to_client.Returned() | to_client.Raised():
                self._calls.take(message)

    def _die(self, why: str) -> bool:
        """There is no engine any more: fail all requests and calls, and refuse new ones. Returns whether the engine may
        be restarted."""
        again = self._reopen is not None and self._restarts.take(time.monotonic())
        logger.critical(
            "the engine died: %s; %d open requests fail; %s (%s)",
            *(why, len(self._requests), "it is restarted" if again else "it is not restarted", self._restarts),
        )
        if again:
            self._refusal = partial(EngineRestartingError, f"{why}; the engine is being restarted")
        else:
            self._refusal = partial(EngineDeadError, why)
        self.totals.end(paused=self.paused)
        self._stalled = False
        self._requests.fail(self._refusal)
        self._calls.fail(self._refusal)
        return again

    async def _restart(self) -> str | None:
        """Start an engine process in the place of the dead one. None: it is there; else why it does not start."""
        assert self._reopen is not None
        await self.link.close(kill=True)  # returns when the process is gone, and its memory with it
        paused = self.paused
        try:
            self.link, self.config = await self._reopen(paused)
        except (EngineStartError, ValueError, OSError) as error:
            return f"the engine could not be restarted: {error}"
        self.num_restarts += 1
        self.last_heard = time.monotonic()
        self._refusal = None
        # An engine that others restart too may have begun as they knew it, whatever `paused` was.
        if self._told_meanwhile or self.paused != paused:
            pause = to_engine.PauseEngine("abort", False, PAUSE_TIMEOUT)
            self._calls.tell(pause if self.paused else to_engine.ResumeEngine())
        self._told_meanwhile = False
        log_ready(self.link, self.config)
        return None


def log_ready(link: Link, config: SchedulerConfig) -> None:
    """Log that an engine process takes requests, and its limits."""
    logger.info(
        "the engine is ready: process %d; at most %d tokens a request, %d requests at once, %d tokens a step; KV cache "
        "of %d blocks of %d tokens",
        *(link.pid, config.max_model_len, config.max_num_seqs, config.max_num_batched_tokens),
        *(config.num_blocks - 1, config.block_size),
    )
