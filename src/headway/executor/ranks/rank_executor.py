"""The executor of one rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from headway.config import EngineConfig
from headway.executor.kv_tensors import bytes_per_block
from headway.executor.ranks.rank import Rank, weight_bytes
from headway.executor.sampling_state import Sampled
from headway.executor.transformers_executor import TransformersExecutor
from headway.model_files import ModelFiles
from headway.scheduler.batch import Batch, IntArray


class RankExecutor(TransformersExecutor):
    """Holds the part of a model that belongs to `rank`. All ranks must be made, and run the same steps."""

    def __init__(self, files: ModelFiles, config: EngineConfig, rank: Rank) -> None:
        self._rank = rank
        super().__init__(files, replace(config, device=str(rank.device)))
        model = self._model
        assert model is not None
        self.weight_bytes = weight_bytes(model.module.parameters())
        self.kv_cache_bytes = self.num_blocks * bytes_per_block(model.layers, config.block_size, model.dtype)

    def follow(self, batch: Batch) -> None:
        """Run the step of `batch`, of which rank 0 makes the result."""
        self._enqueue(batch)

    def _agreed(self, num_blocks: int) -> int:
        return self._rank.least(num_blocks)

    def _sample(self, logits: Tensor, slots: IntArray, positions: IntArray) -> Sampled:
        """Rank 0 samples, and tells the tokens: draws depend on seeds, histories and grammars, which it alone knows."""
        if self._rank.number == 0:
            sampled = super()._sample(logits, slots, positions)
        else:
            tokens = torch.empty(len(slots), dtype=torch.int64, device=logits.device)
            sampled = Sampled(tokens, np.empty(0, np.int64), None)
        self._rank.share(sampled.tokens)
        return sampled
