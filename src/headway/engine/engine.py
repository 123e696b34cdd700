"""An engine: a manager, an executor and the writer that drives them, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from headway.config import EngineConfig, PauseMode, SchedulerConfig
from headway.engine.preprocess import Prepared, PreprocessPool
from headway.engine.writer import NO_PREPROCESSOR, OnEffects, OnSending, WriterLoop
from headway.errors import RequestError
from headway.executor.base import Executor
from headway.managers import MANAGERS, Manager, choose_scheduler
from headway.model_files import ModelFiles
from headway.model_limits import ModelLimits
from headway.request import Request, Span
from headway.sampling import SamplingParams
from headway.scheduler.answers import Progress
from headway.scheduler.audit import AuditReport
from headway.scheduler.snapshot import Snapshot

Preprocess = Callable[[Request], Prepared]

PREPROCESS_THREADS = 4
_POLL_SECONDS = 0.01


class Engine:
    """Takes requests from any thread; hands every effect to `on_effects`, on the writer's thread.

    Every accepted request gets exactly one RequestEnd. Handing in waits for nobody (under v0 and v1 perhaps for the
    lock, and so for a scheduling pass); a question waits for its answer, at most `timeout` seconds. Once the engine has
    stopped every call that would reach the scheduler raises EngineDeadError, the ends of requests included.

    preprocess: makes prompt and spans of requests that bring `preprocess`, on threads of the engine's own; see
        `PreprocessPool`. What it makes is checked as at the door. Without it such requests are refused.
    on_sending, async_scheduling: see `WriterLoop`.
    """

    def __init__(
        self,
        manager: Manager,
        executor: Executor,
        on_effects: OnEffects,
        *,
        preprocess: Preprocess | None = None,
        on_sending: OnSending | None = None,
        async_scheduling: bool = True,
        step_timeout: float = 300.0,
    ) -> None:
        self._manager = manager
        pool = None
        if preprocess is not None:
            pool = PreprocessPool(partial(_prepare, preprocess, manager), PREPROCESS_THREADS, manager.post_result)
        self._has_preprocessor = pool is not None
        self._loop = WriterLoop(
            manager,
            executor,
            on_effects,
            on_sending=on_sending,
            pool=pool,
            async_scheduling=async_scheduling,
            step_timeout=step_timeout,
        )
        self._files: ModelFiles | None = None

    @classmethod
    def from_config(
        cls,
        config: EngineConfig,
        on_effects: OnEffects,
        *,
        preprocess: Preprocess | None = None,
        on_sending: OnSending | None = None,
    ) -> Engine:
        """Load the model and build everything around it. Raises ValueError, in one line, for what cannot work."""
        # Here, and not above, because it brings torch, which nothing else needs.
        from headway.executor.transformers_executor import TransformersExecutor

        files = ModelFiles.resolve(config)
        executor = TransformersExecutor(files, config)
        limits = ModelLimits(files.vocab_size, files.eos_token_ids, encodes_media=False)
        engine = cls.assemble(
            config,
            executor,
            files.max_model_len,
            executor.num_blocks,
            limits,
            on_effects,
            preprocess=preprocess,
            on_sending=on_sending,
        )
        engine._files = files
        return engine

    @classmethod
    def assemble(
        cls,
        config: EngineConfig,
        executor: Executor,
        max_model_len: int,
        num_blocks: int,
        limits: ModelLimits,
        on_effects: OnEffects,
        *,
        preprocess: Preprocess | None = None,
        on_sending: OnSending | None = None,
    ) -> Engine:
        """Put the chosen manager before any executor."""
        scheduler_config = config.for_scheduler(max_model_len=max_model_len, num_blocks=num_blocks)
        manager = MANAGERS[choose_scheduler(config.scheduler)](
            scheduler_config, limits=limits, max_waiting=config.max_waiting
        )
        return cls(
            manager,
            executor,
            on_effects,
            preprocess=preprocess,
            on_sending=on_sending,
            async_scheduling=config.async_scheduling,
            step_timeout=config.step_timeout,
        )

    @property
    def files(self) -> ModelFiles:
        """The model it was loaded from, by `from_config`."""
        assert self._files is not None, "this engine was put together without a model"
        return self._files

    @property
    def scheduler_config(self) -> SchedulerConfig:
        """The limits in force."""
        return self._manager.config

    @property
    def manager(self) -> Manager:
        """What the writer drives, for those who need its whole surface (prefill and decode on two engines)."""
        return self._manager

    def start(self) -> None:
        """Start the device and the writer."""
        self._loop.start()

    # -- requests ------------------------------------------------------------------------------------------------

    def add(
        self,
        request_id: str,
        prompt: Sequence[int] | NDArray[np.integer],
        sampling: SamplingParams,
        *,
        uid: int | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        spans: Sequence[Span] = (),
        preprocess: bytes | None = None,
    ) -> int:
        """Hand in a request and return its uid, by which its effects name it.

        uid: the caller's own, if it brings one; it must be unique for ever.
        spans, preprocess: as in `Request`.

        Raises RequestError, DuplicateRequestError, QueueFullError, EnginePausedError or EngineDeadError; then nothing
        was handed in.
        """
        if preprocess is not None and not self._has_preprocessor:
            raise RequestError(f"{NO_PREPROCESSOR}: it takes no request that has to be prepared, got {request_id!r}")
        request = self._manager.make_request(
            request_id,
            prompt,
            sampling,
            uid=uid,
            priority=priority,
            cache_salt=cache_salt,
            spans=tuple(spans),
            preprocess=preprocess,
        )
        self._manager.add(request)
        return request.uid

    def check_request(self, prompt: Sequence[int] | NDArray[np.integer], sampling: SamplingParams) -> None:
        """Raise the RequestError that `add` would raise for these; hands nothing in."""
        self._manager.make_request("", prompt, sampling, uid=0)

    def finish(self, uids: Iterable[int]) -> None:
        """End requests whose answer is complete (a stop string). Unknown ones are a no-op."""
        self._manager.finish(uids)

    def abort(self, uids: Iterable[int]) -> None:
        """End requests that nobody wants any more. Unknown ones are a no-op."""
        self._manager.abort(uids)

    def progress(self, request: int | str, timeout: float = 5.0) -> Progress | None:
        """How far a request is, by uid or request id; None if there is no such request (any more)."""
        return self._manager.progress(request, timeout)

    # -- the whole engine ----------------------------------------------------------------------------------------

    def pause(self, mode: PauseMode = "abort", *, reset_prefix_cache: bool = True, timeout: float = 30.0) -> None:
        """Take no requests and compute nothing until `resume`; returns when nothing is on the device any more.

        mode: what becomes of the requests inside: "abort" ends them, "preempt" lets them go on after `resume`.
        reset_prefix_cache: forget what is cached: the weights are about to change.

        Raises TimeoutError if a step is still on the device after so many seconds; the engine stays paused.
        """
        self._manager.pause(mode, reset_prefix_cache=reset_prefix_cache, timeout=timeout)

    def resume(self) -> None:
        """Take requests and compute again. Nothing happens if it is not paused."""
        self._manager.resume()

    @property
    def is_paused(self) -> bool:
        """Whether new requests are refused because of a pause."""
        return self._manager.door.paused

    def reset_prefix_cache(self, timeout: float = 5.0) -> int:
        """Forget what is cached; returns how many blocks were. What runs goes on, and is never found by others."""
        return self._manager.reset_prefix_cache(timeout)

    def audit(self, timeout: float = 30.0) -> AuditReport:
        """Who owns what, recounted from the ground up. Takes the writer O(slots + blocks)."""
        return self._manager.audit(timeout)

    def snapshot(self) -> Snapshot:
        """The scheduler's state as last published."""
        return self._manager.snapshot()

    def failure(self) -> str | None:
        """Why the engine is dead, in one line; None while it lives."""
        return self._loop.failure

    def is_stalled(self) -> bool:
        """Whether it has work and makes no progress."""
        return self._loop.is_stalled()

    def shutdown(self, grace: float = 0.0) -> None:
        """Take no more requests, let those inside finish for up to `grace` seconds, end the rest (ABORT), stop.

        A paused engine finishes nothing, so it stops at once. Idempotent. Waits for the threads to end.
        """
        self._manager.door.close("the engine is shutting down")
        until = time.monotonic() + grace
        while self._manager.door.num_inside and not self._is_over() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        self._loop.stop()

    def _is_over(self) -> bool:
        return self._loop.failure is not None or self._manager.snapshot().paused


def _prepare(preprocess: Preprocess, manager: Manager, request: Request) -> Prepared:
    """What the preprocessor makes, which must be a request that the door would have taken. Raises RequestError."""
    prepared = preprocess(request)
    if isinstance(prepared, Prepared):
        prompt = request.prompt if prepared.prompt is None else prepared.prompt
        manager.make_request(request.request_id, prompt, request.sampling, uid=request.uid, spans=prepared.spans)
    return prepared
