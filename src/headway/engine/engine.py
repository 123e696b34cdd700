"""An engine: a manager, an executor and the writer that drives them, in this process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from headway.config import EngineConfig
from headway.engine.connector import Connector, connector_of
from headway.engine.grammar_compiler import MEMORY, SECONDS, GrammarCompiler
from headway.engine.grammar_process import Vocabulary
from headway.engine.kv_events import KVEventPublisher
from headway.engine.preprocess import Prepared, PreprocessPool
from headway.engine.writer import OnEffects, OnKVEvents, OnSending, WriterLoop
from headway.executor.base import Executor
from headway.kvcache import KVEvent
from headway.managers import MANAGERS, Manager, choose_scheduler
from headway.model_files import ModelFiles
from headway.model_limits import ModelLimits
from headway.request import NewRequest, Request, Transfer
from headway.token_ids import pack
from headway.transfer.counts import TransferCounts
from headway.wire.to_client import KVEventCounts

logger = logging.getLogger(__name__)

Preprocess = Callable[[Request], Prepared]

PREPROCESS_THREADS = 4
_POLL_SECONDS = 0.01


class Engine:
    """Takes requests from any thread, and passes all effects to `on_effects`, on the writer's thread.

    Every accepted request gets exactly one RequestEnd. Adding a request does not wait (v0 and v1: it may wait for the
    lock, and so for a scheduling pass). A query waits for its answer, at most `timeout` seconds. Once the engine has
    stopped, every command and query raises EngineDeadError, also `finish` and `abort`.

    preprocess: makes the prompt and the spans of requests that bring `preprocess`, on threads of the engine; see
        `PreprocessPool`. Its result is checked as at the door. None: such requests are refused.
    kv_events: publishes what happens to the prefix cache; the engine starts and closes it. None: nothing is published.
    grammars: compiles the forms of answers, on the same threads; the engine closes it. None: requests with a form are
        refused.
    on_sending, on_kv_events, connector, async_scheduling: see `WriterLoop`.
    """

    def __init__(
        self,
        manager: Manager,
        executor: Executor,
        on_effects: OnEffects,
        *,
        preprocess: Preprocess | None = None,
        grammars: GrammarCompiler | None = None,
        on_sending: OnSending | None = None,
        on_kv_events: OnKVEvents | None = None,
        connector: Connector | None = None,
        kv_events: KVEventPublisher | None = None,
        async_scheduling: bool = True,
        step_timeout: float = 300.0,
    ) -> None:
        self._manager = manager
        self._connector = connector
        self._kv_events = kv_events
        self._grammars = grammars
        pool = None
        if preprocess is not None or grammars is not None:
            prepare = partial(_prepare, preprocess, grammars, manager)
            pool = PreprocessPool(prepare, PREPROCESS_THREADS, manager.post_result)
        followers: list[OnKVEvents] = [] if kv_events is None else [kv_events.publish]
        if on_kv_events is not None:
            followers.append(on_kv_events)
        self._loop = WriterLoop(
            manager,
            executor,
            on_effects,
            on_sending=on_sending,
            on_kv_events=_to_all(followers),
            connector=connector,
            pool=pool,
            async_scheduling=async_scheduling,
            step_timeout=step_timeout,
        )
        self._files: ModelFiles | None = None
        self.placement = executor.placement

    @classmethod
    def from_config(
        cls,
        config: EngineConfig,
        on_effects: OnEffects,
        *,
        preprocess: Preprocess | None = None,
        on_sending: OnSending | None = None,
        on_kv_events: OnKVEvents | None = None,
    ) -> Engine:
        """Load the model, and build executor, manager and engine. Raises ValueError, with a message of one line, for
        a model or settings that cannot work."""
        # Imported here, because it imports torch, which nothing else needs.
        from headway.executor.transformers_executor import TransformersExecutor

        files = ModelFiles.resolve(config)
        executor: TransformersExecutor
        if config.tensor_parallel_size == 1:
            executor = TransformersExecutor(files, config)
        else:
            from headway.executor.ranks.leader import Leader

            executor = Leader(files, config)
        limits = replace(files.limits, encodes_media=False)
        connect = None
        if config.moves_kv:
            memory = executor.kv_memory()
            if memory is None:
                raise ValueError("kv_listen and kv_peers need a KV cache on a CPU: other KV cannot travel yet")
            connect = partial(connector_of, config, memory)
        engine = cls.assemble(
            config,
            executor,
            executor.num_blocks,
            limits,
            on_effects,
            preprocess=preprocess,
            grammars=_grammar_compiler(files),
            on_sending=on_sending,
            on_kv_events=on_kv_events,
            connect=connect,
        )
        engine._files = files
        return engine

    @classmethod
    def assemble(
        cls,
        config: EngineConfig,
        executor: Executor,
        num_blocks: int,
        limits: ModelLimits,
        on_effects: OnEffects,
        *,
        preprocess: Preprocess | None = None,
        grammars: GrammarCompiler | None = None,
        on_sending: OnSending | None = None,
        on_kv_events: OnKVEvents | None = None,
        connect: Callable[[Manager], Connector] | None = None,
    ) -> Engine:
        """An engine of the chosen manager and any executor. num_blocks: KV blocks of the executor, block 0 included.
        connect: makes the connector, once there is a manager; None: there is none."""
        scheduler_config = config.for_scheduler(
            max_model_len=limits.max_model_len,
            num_blocks=num_blocks,
            reads_same_step=executor.reads_same_step,
            keeps_kv_events=on_kv_events is not None,
        )
        manager = MANAGERS[choose_scheduler(config.scheduler)](
            scheduler_config,
            limits=replace(limits, has_preprocessor=preprocess is not None, has_grammars=grammars is not None),
            max_waiting=config.max_waiting,
        )
        return cls(
            manager,
            executor,
            on_effects,
            preprocess=preprocess,
            grammars=grammars,
            on_sending=on_sending,
            on_kv_events=on_kv_events,
            connector=None if connect is None else connect(manager),
            kv_events=None if config.kv_events is None else KVEventPublisher(config.kv_events, config.block_size),
            async_scheduling=config.async_scheduling,
            step_timeout=config.step_timeout,
        )

    @property
    def files(self) -> ModelFiles:
        """The files of the model. Only for an engine that `from_config` made."""
        assert self._files is not None, "this engine was put together without a model"
        return self._files

    @property
    def manager(self) -> Manager:
        """The manager that the writer drives. It takes the calls on requests and on the whole engine."""
        return self._manager

    def start(self) -> None:
        """Start the device and the writer."""
        if self._kv_events is not None:
            self._kv_events.start()
        self._loop.start()

    def add(self, new: NewRequest) -> int:
        """Add a request and return its uid. Effects name the request by this uid.

        Raises RequestError, DuplicateRequestError, QueueFullError, EnginePausedError or EngineDeadError; then nothing
        was added.
        """
        request = self._manager.door.make_request(new)
        if self._connector is None or request.transfer is None:
            self._manager.add(request)
        else:
            self._add_with_transfer(request, self._connector)
        return request.uid

    def pull_from(self, uid: int, params: Mapping[str, Any] | None) -> None:
        """Name the source of the KV of a prompt that was in `Effects.sourceless`. params: `kv_transfer_params` of P;
        None, or parameters that cannot be used: the prompt is computed here. Other uids are ignored."""
        if self._connector is not None:
            self._connector.pull_from(uid, params)

    def handover(self, uid: int) -> dict[str, Any] | None:
        """What D must be told to pull the KV of a request that lends, also while it is computed. None: nothing is lent
        under this uid."""
        return None if self._connector is None else self._connector.handover(uid)

    def failure(self) -> str | None:
        """Why the engine has failed, in one line; None while it has not."""
        return self._loop.failure

    def transfer_counts(self) -> TransferCounts | None:
        """What the connector has moved; None if there is no connector."""
        return None if self._connector is None else self._connector.counts()

    def kv_event_counts(self) -> KVEventCounts | None:
        """Batches of KV events; None if none are published."""
        return None if self._kv_events is None else self._kv_events.counts()

    def peer_of(self, uid: int) -> str | None:
        """HOST:PORT of the engine that the KV of this request comes from or goes to, where one is known."""
        return None if self._connector is None else self._connector.peer_of(uid)

    def is_stalled(self) -> bool:
        """Whether the engine has work and makes no progress."""
        return self._loop.is_stalled()

    def shutdown(self, grace: float = 0.0) -> None:
        """Refuse new requests, let the requests inside finish for up to `grace` seconds, end the rest (ABORT), stop.

        A paused engine finishes no request, so it stops at once. Waits for the threads to end. Idempotent.
        """
        self._manager.door.close("the engine is shutting down")
        until = time.monotonic() + grace
        while self._manager.door.num_inside and not self._is_over() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        self._loop.stop()
        if self._grammars is not None:
            self._grammars.close()
        if self._kv_events is not None:
            self._kv_events.close()

    def _add_with_transfer(self, request: Request, connector: Connector) -> None:
        """Add a request after the connector knows of it. Where nothing can be pulled, the prompt is computed here. A
        request that pulls without parameters gets its blocks first; then its caller is asked for the source."""
        if request.transfer is Transfer.LEND:
            connector.expect(request)
        elif request.kv_transfer_params is not None:
            try:
                connector.want(request.uid, request.kv_transfer_params)
            except ValueError as error:
                logger.warning("request %r computes its prompt here: %s", request.request_id, error)
                request = replace(request, transfer=None)
        try:
            self._manager.add(request)
        except BaseException:
            connector.ended([request.uid])
            raise

    def _is_over(self) -> bool:
        return self._loop.failure is not None or self._manager.snapshot().paused


def _to_all(followers: Sequence[OnKVEvents]) -> OnKVEvents | None:
    """Tells all of them of the same events; None if there are none."""
    if len(followers) < 2:
        return followers[0] if followers else None

    def tell(events: list[KVEvent]) -> None:
        for follower in followers:
            follower(events)

    return tell


def _grammar_compiler(files: ModelFiles) -> GrammarCompiler | None:
    """None for a model without an end-of-sequence token: an answer in a form could not end."""
    if not files.limits.eos_token_ids:
        return None
    return GrammarCompiler(
        Vocabulary(
            tokenizer=files.tokenizer,
            trust_remote_code=files.trust_remote_code,
            size=files.limits.vocab_size,
            stop_token_ids=files.limits.eos_token_ids,
            seconds=SECONDS,
            memory=MEMORY,
        )
    )


def _prepare(
    preprocess: Preprocess | None, grammars: GrammarCompiler | None, manager: Manager, request: Request
) -> Prepared:
    """Run the preprocessor, and check its result as the door checks a request; compile the form of the answer. Raises
    RequestError."""
    prepared = Prepared()
    if request.preprocess is not None:
        assert preprocess is not None, "the door refuses such requests"
        prepared = _preprocessed(preprocess, manager, request)
    form = request.sampling.structured_outputs
    if form is not None:
        assert grammars is not None, "the door refuses such requests"
        prepared = replace(prepared, grammar=grammars.compile(form))
    return prepared


def _preprocessed(preprocess: Preprocess, manager: Manager, request: Request) -> Prepared:
    prepared = preprocess(request)
    if isinstance(prepared, Prepared):
        prompt = request.prompt if prepared.prompt is None else prepared.prompt
        tokens = pack(prompt, manager.door.num_token_ids)
        manager.door.make_request(
            NewRequest(
                request_id=request.request_id,
                prompt=tokens,
                sampling=request.sampling,
                uid=request.uid,
                spans=prepared.spans,
            )
        )
    return prepared
