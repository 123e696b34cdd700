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

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headway.client.cached_blocks import CachedBlocks, Forget, Learn
from headway.client.engine_calls import EngineCalls, NoAnswerError
from headway.client.engine_life import EngineLife, Reopen, log_ready
from headway.client.engines import Observe
from headway.client.feed import window
from headway.client.in_thread import in_thread
from headway.client.kv_sources import FindSource
from headway.client.link import EngineStartError, Link, ProcessLink, unless_it_fails
from headway.client.open_requests import Observer, OpenRequests
from headway.client.pending import Update
from headway.client.pending_request import PendingRequest, RequestFailedError
from headway.client.prompt_encoder import PromptEncoder
from headway.client.restart_budget import RestartBudget, Restarts
from headway.client.token_processor import TokenProcessor
from headway.client.totals import Counted
from headway.config import EngineConfig, PauseMode, SchedulerConfig
from headway.errors import EngineDeadError, RequestError, ShuttingDownError
from headway.model_files import ModelFiles
from headway.placement import Placement
from headway.request import NewRequest
from headway.token_ids import pack
from headway.wire import to_engine
from headway.wire.to_client import AuditReport, KVEventCounts, Snapshot, Status, TransferCounts
from headway.wire.uids import UID_BITS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ONLY_ENGINE = "0"  # its name, where there are no others
logger = logging.getLogger(__name__)

__all__ = ["EngineClient", "EngineStartError", "Observer", "PendingRequest", "RequestFailedError", "Update"]


class EngineClient:
    """See the module. `start` makes it. Not thread-safe: all calls come from the event loop that started it.

    If the engine dies, all pending requests fail, and so does every new one; it may be restarted, see `EngineLife`.

    reopen, restarts: see `EngineLife`.
    prompts: tokenises texts; an encoder that is given is others' too, and they close it.
    requests: in progress. capacity: the most answers that the engine holds.
    placement: where the engine computes. address: where clients of other machines reach it; tells_cache: whether
        it says which blocks it holds; see `Ready`.
    dead: set when the engine has died for good; `why_unhealthy` says of what.
    wire_errors: messages to this process that were dropped.
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
        self.placement = placement or Placement()
        self.address = address
        self.tells_cache = tells_cache
        self._index = index
        self.capacity = config.max_num_seqs + max_waiting
        self._own_prompts = prompts is None
        self.prompts = prompts or PromptEncoder(tokenizer, config.max_model_len)
        self.requests = OpenRequests(
            TokenProcessor(tokenizer, files.limits.eos_token_ids),
            self._send,
            first_uid=index << UID_BITS,
            window=window(config.max_num_seqs),
            capacity=self.capacity,
            observer=observer,
        )
        self._calls = EngineCalls(self._send, first=index << UID_BITS)
        self._num_pauses = 0
        self._life = EngineLife(
            link,
            config,
            requests=self.requests,
            calls=self._calls,
            vocab_size=files.limits.vocab_size,
            reopen=reopen,
            restarts=restarts or RestartBudget(),
        )
        self.dead = self._life.dead
        self.wire_errors = self._life.wire_errors

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

        log_ready(link, ready.config)
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
        return self._life.totals.snapshot

    @property
    def transfers(self) -> TransferCounts | None:
        """The last counts of the engine's connector, which go on over restarts; None if the engine moves no KV."""
        return self._life.totals.transfers

    @property
    def kv_events(self) -> KVEventCounts | None:
        """Batches of KV events, counted on over restarts; None if the engine publishes none."""
        return self._life.totals.kv_events

    @property
    def num_engine_wire_errors(self) -> int:
        """Messages to the engine that it has dropped."""
        return self._life.totals.num_wire_errors

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
        return self._life.link.pid

    @property
    def config(self) -> SchedulerConfig:
        """The limits of the present engine process."""
        return self._life.config

    @property
    def num_restarts(self) -> int:
        """How often the engine process was started again."""
        return self._life.num_restarts

    @property
    def num_pulses(self) -> int:
        """How often the engine has said its numbers."""
        return self._life.num_pulses

    @property
    def last_heard(self) -> float:
        """When the engine last said something: seconds, `time.monotonic`."""
        return self._life.last_heard

    def follow_cache(self, learn: Learn, forget: Forget) -> None:
        """From now on the engine says which blocks its cache holds; see `CachedBlocks`. Only where `tells_cache`."""

        def ask() -> None:
            self._send(to_engine.TellCache(self._index))

        self._life.cached = CachedBlocks(ask, learn, forget, self.config.num_blocks)

    def why_unhealthy(self) -> str | None:
        """Why the engine is not healthy now (dead, stalled or silent), in one line; None if it is healthy."""
        return self._life.why_unhealthy()

    def why_refused(self) -> EngineDeadError | None:
        """The error of requests and calls while there is no engine; None: there is one."""
        return self._life.why_refused()

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
        confirm: bool = False,
    ) -> PendingRequest:
        """Send the prompts of one client request; returns at once. A large one goes to the engine in slices.

        requests: with prompts that `pack` made and request ids that are not in use; this object gives the uids.
        stream: True: updates bring deltas; False: complete outputs.
        source: of the KV of the only prompt, which pulls; it is asked when the engine has blocks. None: such a prompt
            brings `kv_transfer_params`.
        shown: special tokens that are in the text of the answers, although special tokens are left out.
        confirm: False: a single answer counts as accepted at once; its refusal still comes before any update of it.

        Raises DuplicateRequestError, QueueFullError, EngineDeadError or EngineRestartingError. The engine finds all
        other errors of a request; iterating the result raises them.
        """
        self._life.check_alive()
        return self.requests.add(requests, stream=stream, source=source, shown=shown, confirm=confirm)

    async def pause(self, mode: PauseMode = "abort", *, reset_prefix_cache: bool = True, timeout: float = 30.0) -> None:
        """See `Manager.pause`. Like every call it also raises EngineDeadError if the engine stops before it answers,
        and TimeoutError if no answer comes; then the pause is withdrawn.

        If the engine dies meanwhile and is restarted, it begins paused.
        """
        self._life.check_alive()
        before, self._life.paused = self._life.paused, True
        self._num_pauses += 1
        number = self._num_pauses
        try:
            await self._call(to_engine.PauseEngine(mode, reset_prefix_cache, timeout), timeout)
        except NoAnswerError as error:
            if before or number != self._num_pauses:  # another pause wants the same
                raise
            self._life.paused = False
            self._calls.tell(to_engine.ResumeEngine())
            raise TimeoutError(f"{error}; the pause is withdrawn") from None
        except ValueError:  # refused
            self._life.paused = before
            raise

    def begin_after(self, before: Counted, pulse: Status | None) -> None:
        """The engine has lived before, as far as its owner knows: its counters go on from there. pulse: of its present
        life, see `Ready`."""
        self._life.begin_after(before, pulse)

    def begin_paused(self, paused: bool) -> None:
        """Whether an engine that is being restarted begins paused."""
        self._life.begin_paused(paused)

    async def resume(self) -> None:
        """See `Manager.resume`."""
        await self._call(to_engine.ResumeEngine())
        self._life.paused = False

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
        await self._life.end()
        if self._own_prompts:
            self.prompts.texts.close()

    # -- the inside

    def _send(self, message: to_engine.ToEngine) -> None:
        self._life.send(message)

    async def _call(self, call: to_engine.EngineCall, timeout: float = 0.0) -> Any:
        self._life.check_alive()
        return await self._calls.call(call, timeout)


def check_num_answers(num_prompts: int, n: int, capacity: int, max_num_seqs: int) -> None:
    """Raises RequestError for more answers than an engine of this capacity can ever hold."""
    if num_prompts * n > capacity:
        raise RequestError(
            f"{num_prompts} prompts x n = {n} are {num_prompts * n} answers; an engine holds at most {capacity} "
            f"(max_num_seqs {max_num_seqs} + max_waiting {capacity - max_num_seqs}): send fewer prompts in one request"
        )
