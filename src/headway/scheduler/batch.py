"""A step's work order and its result: all that passes between the core and an executor.

    core  -- Batch -->  executor  -- StepResult -->  core

Both own every array in them; neither is ever changed after it was handed over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.request import Request, Span

IntArray = NDArray[np.int32]
LongArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(slots=True, eq=False)  # not frozen: see `Batch`
class Admission:
    """A request that got a slot: what the executor must know of it before its first row.

    tokens: int32 [num_known_tokens], read-only: the prompt, and after a preemption the output so far. The executor
        takes the input of every prefill chunk from here: tokens[position : position + num_new_tokens].
    num_cached_tokens: leading tokens whose KV is in the block table already; the first chunk starts there.
    prompt_logprobs_from: the first position of the prompt whose log-probabilities are wanted, if the request asks for
        these: 1, or after a preemption what follows the positions that were reported. Position 0 follows nothing.
    """

    slot: int
    request: Request
    tokens: IntArray
    num_cached_tokens: int
    prompt_logprobs_from: int = 1


@dataclass(slots=True, eq=False)  # not frozen: that would triple the time to make one, in every step
class Batch:
    """One step. Row i computes `num_new_tokens[i]` tokens of the request in slot `slots[i]`, from `positions[i]`.

    Rows `[:num_decodes]` are decodes: one token each, whose id is the last one sampled in that slot (the executor
    keeps it). The rows after them are prefill chunks, whose ids come from the slot's Admission.

    step_id: consecutive from 1, in launch order.
    slots, positions, num_new_tokens: int32 [N].
    samples: bool [N]; rows after whose last token the next token is sampled. Always true for decodes, and for a
        chunk when it completes the known tokens.
    table_slots, table_columns, table_blocks: int32 [M]; changes to the block tables, to be applied before the step:
        tables[table_slots, table_columns] = table_blocks. Entries past the last known one are garbage, not zero.
    admissions: requests new in their slots since the last batch, to be applied before the step.
    encode: (uid, span) of images and videos whose encoder output is needed in this step and not there yet.
    encoder_evicted: digests whose encoder output is given up, before anything is encoded.
    preempted: uids of requests that gave up their slot to be computed again, since the last batch, in this order, each
        once. To be applied before `admissions`: a request may be in both, or have ended since.
    decode_set: the same as in the batch before if and only if the decodes are the same requests in the same slots. A
        greater number otherwise: what depends on the decode rows alone can be kept under it.

    With `num_speculative_tokens` a decode may return more tokens than one, or none: see `StepResult.counts`. Its block
    table has places up to the last draft, or up to the limit of the request. With `quarantine_slots` the slots that
    were given up, by this pass too, are told by `Scheduler.take_quarantined`.
    """

    step_id: int
    num_decodes: int
    num_tokens: int
    slots: IntArray
    positions: IntArray
    num_new_tokens: IntArray
    samples: BoolArray
    table_slots: IntArray
    table_columns: IntArray
    table_blocks: IntArray
    admissions: tuple[Admission, ...] = ()
    encode: tuple[tuple[int, Span], ...] = ()
    encoder_evicted: tuple[bytes, ...] = ()
    preempted: tuple[int, ...] = ()
    decode_set: int = 0

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of a step's sampled tokens, for the rows that asked.

    rows: int32 [R]; indices into StepResult.tokens: each token is a row.
    sampled: float32 [R]; ranks: int32 [R], rank of the sampled token, 1 = most likely.
    top_ids: int32 [R, K], top: float32 [R, K]; most likely first. K is the largest number asked for in the batch; a
        request that asked for k takes the first k.
    """

    rows: IntArray
    sampled: NDArray[np.float32]
    ranks: IntArray
    top_ids: IntArray
    top: NDArray[np.float32]

    def keep(self, kept: BoolArray) -> Logprobs:
        """What is left when only some of the result's tokens are kept. kept: bool [number of tokens]."""
        mine = kept[self.rows]
        new_rows = (np.cumsum(kept) - 1)[self.rows[mine]].astype(np.int32)
        return Logprobs(new_rows, self.sampled[mine], self.ranks[mine], self.top_ids[mine], self.top[mine])


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of prompt tokens, for the chunks that asked: a run of positions for each.

    rows: int32 [C], ascending; indices into the batch. starts: int32 [C], the first position of each run. counts: int32
        [C], positions of each run, at least 1: with a chunk from p of c tokens, some of p + 1 to p + c.
    logprobs: float32 [T], T the sum of counts; ranks: int32 [T]: of the prompt's own tokens, 1 = most likely.
    top_ids: int32 [T, K], top: float32 [T, K]; most likely first. K is the largest number asked for in the batch; a
        request that asked for k takes the first k.
    """

    rows: IntArray
    starts: IntArray
    counts: IntArray
    logprobs: NDArray[np.float32]
    ranks: IntArray
    top_ids: IntArray
    top: NDArray[np.float32]

    def keep(self, kept: BoolArray, new_rows: IntArray) -> PromptLogprobs:
        """What is left of the runs. kept: bool [C]. new_rows: int32, the new index of each run that is kept."""
        mine = np.repeat(kept, self.counts)
        return PromptLogprobs(
            new_rows,
            self.starts[kept],
            self.counts[kept],
            self.logprobs[mine],
            self.ranks[mine],
            self.top_ids[mine],
            self.top[mine],
        )


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step.

    tokens: int32 [sum of counts], in row order; empty when the step failed.
    prompt_logprobs: of the chunks whose requests ask for these; None if there are none.
    error: why the step failed; None when it succeeded.
    counts: int32 [number of sampling rows], tokens of each row. None: one each. A decode gives 0 to
        1 + num_speculative_tokens tokens, a chunk exactly 1. A decode from position p with c tokens has put the KV of
        the positions p to p + c - 1 in place; with 0 the request stays where it was, and p is computed again. Tokens
        after the end of a request, by a stop token or its limit, are dropped by the core.
    """

    step_id: int
    tokens: IntArray
    logprobs: Logprobs | None = None
    error: str | None = None
    counts: IntArray | None = None
    prompt_logprobs: PromptLogprobs | None = None
