"""Which positions of prompts a step is asked to judge: the positions after the tokens of its chunks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headway.scheduler.batch import Admission, Batch, IntArray


class PromptRuns(NamedTuple):
    """A run of positions for each chunk that asks. rows, starts, counts: int32 [C], as in `PromptLogprobs`. prompts:
    the C prompts. most: the largest number of alternatives asked for."""

    rows: IntArray
    starts: IntArray
    counts: IntArray
    prompts: list[IntArray]
    most: int

    def targets(self) -> IntArray:
        """int32 [T]; the prompt tokens of all runs."""
        runs = zip(self.prompts, self.starts, self.counts, strict=True)
        return np.concatenate([prompt[start : start + count] for prompt, start, count in runs])

    def positions(self) -> IntArray:
        """int32 [T]; of these tokens, each in its own prompt."""
        return np.concatenate([np.arange(start, start + count) for start, count in zip(self.starts, self.counts)])


class AskingSlots:
    """The slots, of `max_num_seqs`, whose requests ask for log-probabilities of their prompts."""

    def __init__(self, max_num_seqs: int) -> None:
        self._most = np.full(max_num_seqs, -1, np.int32)  # alternatives; -1: not asked for
        self._from = np.zeros(max_num_seqs, np.int32)  # the first position asked for
        self._prompts: dict[int, IntArray] = {}

    def admit(self, admission: Admission) -> None:
        """Take over a slot for a request."""
        slot, most = admission.slot, admission.request.sampling.prompt_logprobs
        if most is None:
            self._most[slot] = -1
            return
        self._most[slot], self._from[slot] = most, admission.prompt_logprobs_from
        self._prompts[slot] = admission.request.prompt

    def runs(self, batch: Batch) -> PromptRuns | None:
        """What this step is asked for; None: nothing."""
        asking = np.flatnonzero(self._most[batch.slots[batch.num_decodes :]] >= 0)
        if not len(asking):
            return None
        rows = asking + batch.num_decodes
        slots, firsts = batch.slots[rows], batch.positions[rows] + 1
        ends = np.minimum(firsts + batch.num_new_tokens[rows], [len(self._prompts[slot]) for slot in slots.tolist()])
        starts = np.maximum(firsts, self._from[slots])
        asked = ends > starts
        if not asked.any():
            return None
        return PromptRuns(
            rows[asked].astype(np.int32),
            starts[asked].astype(np.int32),
            (ends - starts)[asked].astype(np.int32),
            [self._prompts[slot] for slot in slots[asked].tolist()],
            int(self._most[slots[asked]].max()),
        )
