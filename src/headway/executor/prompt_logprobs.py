"""Log-probabilities of prompts, from a model.

They are computed in pieces of bounded size: a long prompt has many tokens, and each has as many logits as there are
tokens in the vocabulary. A step without a row that asks computes nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headway.executor import sampler
from headway.executor.prompt_runs import AskingSlots, PromptRuns
from headway.executor.transfer import HostArrays, HostCopies, SentArray
from headway.scheduler.batch import Admission, Batch, PromptLogprobs

PIECE_BYTES = 64 << 20  # of float32 logits that are there at once
LogitsOf = Callable[[Tensor], Tensor]
"""Gives the logits [R, vocabulary] of tokens int64 [R] of a step."""


@dataclass(frozen=True, slots=True)
class AskedTokens:
    """What a step is asked for. after: int64 [T], the tokens of the step whose logits judge `targets`, int64 [T]."""

    runs: PromptRuns
    after: SentArray
    targets: SentArray


class PromptJudge:
    """Judges the prompts of requests in up to `max_num_seqs` slots. Used by one thread.

    num_pieces: pieces of logits computed so far.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self._slots = AskingSlots(max_num_seqs)
        self._size = piece_size(vocab_size)
        self.num_pieces = 0

    def admit(self, admission: Admission) -> None:
        """Take over a slot for a request."""
        self._slots.admit(admission)

    def asked(self, batch: Batch, arrays: HostArrays) -> AskedTokens | None:
        """What this step is asked for; None: nothing. arrays: sends it to the device."""
        runs = self._slots.runs(batch)
        if runs is None:
            return None
        # Where position 0 of each row would be among the tokens of the step.
        begins = np.cumsum(batch.num_new_tokens) - batch.num_new_tokens - batch.positions
        after = np.repeat(begins[runs.rows] - 1, runs.counts) + runs.positions()
        return AskedTokens(runs, arrays.add(after), arrays.add(runs.targets()))

    def judge(self, asked: AskedTokens, logits_of: LogitsOf, copies: HostCopies) -> PromptLogprobs:
        """The log-probabilities. Their arrays may be read when `copies` have arrived."""
        runs = asked.runs
        found = in_pieces(logits_of, asked.after.tensor, asked.targets.tensor, runs.most, self._size)
        self.num_pieces += len(found)
        return PromptLogprobs(
            runs.rows,
            runs.starts,
            runs.counts,
            logprobs=copies.add(torch.cat([piece.chosen for piece in found])),
            ranks=copies.add(torch.cat([piece.ranks for piece in found]).to(torch.int32)),
            top_ids=copies.add(torch.cat([piece.top_ids for piece in found]).to(torch.int32)),
            top=copies.add(torch.cat([piece.top for piece in found])),
        )


def piece_size(vocab_size: int) -> int:
    """The tokens of a piece: as many as have `PIECE_BYTES` of logits, but at least one."""
    return max(1, PIECE_BYTES // (4 * vocab_size))


def in_pieces(logits_of: LogitsOf, after: Tensor, targets: Tensor, most: int, size: int) -> list[sampler.TokenLogprobs]:
    """The log-probabilities of `targets`, and of the `most` likely tokens, `size` tokens at a time. after, targets: as
    in `AskedTokens`."""
    return [
        sampler.log_probabilities(logits_of(some).float().log_softmax(dim=1), their_targets, most)
        for some, their_targets in zip(after.split(size), targets.split(size), strict=True)
    ]
