"""Log-probabilities of prompts on a device that computes nothing."""

from __future__ import annotations

import numpy as np

from headway.executor.prompt_runs import AskingSlots
from headway.scheduler.batch import Admission, Batch, PromptLogprobs


class MadeUpLogprobs:
    """The token at position p of a prompt has the log-probability -1 / p, and rank 1. The most likely tokens are p, p +
    1, and so on, in the vocabulary."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._slots = AskingSlots(max_num_seqs)

    def admit(self, admission: Admission) -> None:
        """Take over a slot for a request."""
        self._slots.admit(admission)

    def judge(self, batch: Batch) -> PromptLogprobs | None:
        """What the step is asked for; None: nothing."""
        runs = self._slots.runs(batch)
        if runs is None:
            return None
        positions = runs.positions()
        logprobs = (-1 / positions).astype(np.float32)
        nth = np.arange(min(runs.most, self._vocab_size), dtype=np.int32)
        return PromptLogprobs(
            runs.rows,
            runs.starts,
            runs.counts,
            logprobs,
            ranks=np.ones(len(positions), np.int32),
            top_ids=((positions[:, None] + nth) % self._vocab_size).astype(np.int32),
            top=(logprobs[:, None] - nth).astype(np.float32),
        )
