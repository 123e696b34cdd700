"""The executor of an engine whose model is cut over several ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from headway.config import EngineConfig
from headway.error_text import first_line
from headway.executor.loader import choose_device
from headway.executor.ranks.cutting import check_cut
from headway.executor.ranks.orders import Joining, Loaded
from headway.executor.ranks.rank import Rank, device_of, makes
from headway.executor.ranks.rank_executor import RankExecutor
from headway.executor.ranks.rank_group import RankGroup, RankLostError
from headway.executor.ranks.step_bytes import step_bytes
from headway.executor.transformers_executor import Launched
from headway.model_files import ModelFiles
from headway.scheduler.batch import Batch, StepResult
from headway.sizes import readable

logger = logging.getLogger(__name__)

_WORD_SECONDS = 5.0  # until the end of a rank, of which an error here may have come, is told


class Leader(RankExecutor):
    """Rank 0, and the other ranks as its processes. They are lost together, see `failure`.

    Raises ValueError if the model cannot be cut, or if a rank cannot load its part.
    """

    def __init__(self, files: ModelFiles, config: EngineConfig) -> None:
        size = config.tensor_parallel_size
        device = choose_device(config.device)
        check_cut(files, size, device)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(max(1, self._threads_before // size))
        # The others find the same model, also where its name is that of a hub, and need not look for its length.
        theirs = replace(
            config,
            model=str(files.path),
            tokenizer=files.tokenizer,
            max_model_len=files.limits.max_model_len,
            device=device.type,
        )
        self._group = RankGroup(theirs, size, makes(files))
        self._joined: Rank | None = None
        try:
            self._group.await_reports(Joining)
            self._joined = Rank(0, size, self._group.meeting, device_of(device, 0))
            super().__init__(files, config, self._joined)
            loaded = self._group.await_reports(Loaded)
        except BaseException as error:
            lost = None if isinstance(error, KeyboardInterrupt) else self._group.lost_within(_WORD_SECONDS)
            self._leave()
            if lost is None or (isinstance(error, ValueError) and lost == first_line(error)):
                raise
            raise ValueError(lost) from error
        self.placement = replace(self.placement, device=f"{size} x {device.type}")
        for number, one in enumerate([Loaded(self.weight_bytes, self.kv_cache_bytes), *loaded]):
            assert isinstance(one, Loaded)
            logger.info("rank %d: %s of weights, %s of KV cache", number, readable(one.weights), readable(one.kv_cache))

    @property
    def pids(self) -> list[int]:
        """Process ids of ranks 1, 2, ..."""
        return self._group.pids

    def failure(self) -> str | None:
        return self._group.lost

    def restart(self) -> bool:
        """False. All other ranks are killed: a rank that hangs would be waited for without an end."""
        self._group.lose("the step did not end, so all ranks are ended")
        return False

    def shutdown(self) -> None:
        super().shutdown()
        hangs = self._model is not None  # a thread is in a step: it ends when no rank is there to wait for
        self._leave(at_once=hangs)

    def _enqueue(self, batch: Batch) -> Launched:
        with self._lost_by_errors(batch.step_id):
            self._group.send(step_bytes(batch))
            return super()._enqueue(batch)

    def _fetch(self, launched: Launched) -> StepResult:
        with self._lost_by_errors(launched.result.step_id):
            return super()._fetch(launched)

    @contextmanager
    def _lost_by_errors(self, step_id: int) -> Iterator[None]:
        """After an error the other ranks may be in the midst of this step, and would add the next one to it."""
        try:
            yield
        except Exception as error:
            lost = self._group.lost_within(_WORD_SECONDS)
            if lost is None:
                self._group.lose(f"step {step_id} failed in rank 0: {type(error).__name__}: {first_line(error)}")
                raise
            raise RankLostError(lost) from error

    def _leave(self, *, at_once: bool = False) -> None:
        """End the other ranks, and be none any more. A process group in use is left as it is."""
        self._group.close(at_once=at_once)
        torch.set_num_threads(self._threads_before)
        rank, self._joined = self._joined, None
        if rank is not None and not at_once:
            rank.leave()
