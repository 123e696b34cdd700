"""An engine: a manager, an executor and the writer that drives them, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from headway.config import EngineConfig, SchedulerConfig
from headway.engine.loop import OnEffects, WriterLoop
from headway.executor.base import Executor
from headway.executor.model_files import ModelFiles
from headway.managers import MANAGERS, Manager, choose_scheduler
from headway.managers.door import ModelLimits
from headway.request import SamplingParams
from headway.scheduler import Snapshot

_POLL_SECONDS = 0.01


class Engine:
    """Takes requests from any thread; hands every effect to `on_effects`, on the writer's thread.

    Every accepted request gets exactly one RequestEnd. No caller waits for the device, except in `shutdown`; under v0
    and v1 one may wait for the lock, and so for a scheduling pass.
    """

    def __init__(
        self, manager: Manager, executor: Executor, on_effects: OnEffects, *, step_timeout: float = 300.0
    ) -> None:
        self._manager = manager
        self._loop = WriterLoop(manager, executor, on_effects, step_timeout=step_timeout)
        self._files: ModelFiles | None = None

    @classmethod
    def from_config(cls, config: EngineConfig, on_effects: OnEffects) -> Engine:
        """Load the model and build everything around it. Raises ValueError, in one line, for what cannot work."""
        # Here, and not above, because it brings torch, which nothing else needs.
        from headway.executor.transformers import TransformersExecutor

        files = ModelFiles.resolve(config)
        executor = TransformersExecutor(files, config)
        limits = ModelLimits(files.vocab_size, files.eos_token_ids)
        engine = cls.assemble(config, executor, files.max_model_len, executor.num_blocks, limits, on_effects)
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
    ) -> Engine:
        """Put the chosen manager before any executor."""
        scheduler_config = config.for_scheduler(max_model_len=max_model_len, num_blocks=num_blocks)
        manager = MANAGERS[choose_scheduler(config.scheduler)](
            scheduler_config, limits=limits, max_waiting=config.max_waiting
        )
        return cls(manager, executor, on_effects, step_timeout=config.step_timeout)

    @property
    def files(self) -> ModelFiles:
        """The model it was loaded from, by `from_config`."""
        assert self._files is not None, "this engine was put together without a model"
        return self._files

    @property
    def scheduler_config(self) -> SchedulerConfig:
        """The limits in force."""
        return self._manager.config

    def start(self) -> None:
        """Start the device and the writer."""
        self._loop.start()

    def add_request(
        self,
        request_id: str,
        prompt: Sequence[int] | NDArray[np.integer],
        sampling: SamplingParams,
        *,
        uid: int | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> int:
        """Hand in a request and return its uid, by which its effects name it.

        uid: the caller's own, if it brings one; it must be unique for ever.
        Raises RequestError, DuplicateRequestError, QueueFullError or EngineDeadError; then nothing was handed in.
        """
        request = self._manager.make_request(
            request_id, prompt, sampling, uid=uid, priority=priority, cache_salt=cache_salt
        )
        self._manager.add_request(request)
        return request.uid

    def check_request(self, prompt: Sequence[int] | NDArray[np.integer], sampling: SamplingParams) -> None:
        """Raise the RequestError that `add_request` would raise for these; hands nothing in."""
        self._manager.make_request("", prompt, sampling, uid=0)

    def finish_requests(self, uids: Iterable[int]) -> None:
        """End requests whose answer is complete (a stop string). Unknown ones are a no-op."""
        self._manager.finish_requests(uids)

    def abort_requests(self, uids: Iterable[int]) -> None:
        """End requests that nobody wants any more. Unknown ones are a no-op."""
        self._manager.add_abort_req_ids(uids)

    def snapshot(self) -> Snapshot:
        """The scheduler's state as last published."""
        return self._manager.snapshot()

    def failure(self) -> str | None:
        """Why the engine is dead; None while it lives."""
        return self._loop.failure

    def is_stalled(self) -> bool:
        """Whether it has work and makes no progress."""
        return self._loop.is_stalled()

    def shutdown(self, grace: float = 0.0) -> None:
        """Take no more requests, let those inside finish for up to `grace` seconds, end the rest (ABORT), stop.

        Idempotent. Waits for the threads to end.
        """
        self._manager.door.close("the engine is shutting down")
        until = time.monotonic() + grace
        while self._manager.door.num_inside and self._loop.failure is None and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        self._loop.stop()
