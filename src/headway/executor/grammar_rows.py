"""The grammars of the slots: which tokens each row of a step may take.

A step is planned before the tokens of the step before are known. So the tokens that a step draws are noted here by
their copies (`drew`), and looked at when the next step of the slot samples (`masks`): its forward has started by then,
and the wait is for the step before alone. A slot that gets another request, or the same one after a preemption, forgets
what was noted: a token whose row is stale reaches no matcher.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headway.executor.grammar import Grammar, Progress, Words, clear, only
from headway.executor.transfer import HostCopies, to_device
from headway.scheduler.batch import Admission, IntArray

if TYPE_CHECKING:
    from xgrammar import BatchGrammarMatcher

logger = logging.getLogger(__name__)

FREE_SECONDS = 1.0  # of a core that the tokens of a request may take in its grammar, whatever their number
SECONDS_PER_TOKEN = 0.01  # that they may take beyond that: all requests of a batch wait meanwhile
_THREADS = 8  # at most, that fill masks
_LONG = 0.05  # seconds, after which it is looked whose masks take them
_FEW = 4  # matchers that one thread fills sooner than several


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A token that was drawn: it may be read after `copies.wait()`."""

    tokens: IntArray
    index: int
    copies: HostCopies

    def read(self) -> int:
        self.copies.wait()
        return int(self.tokens[self.index])


@dataclass(slots=True)
class _Row:
    """The grammar of the request in a slot. position: of the token that is drawn next.

    min_length: the first position at which the request may stop. drawn: the token before `position`, if it has not
    reached `progress`. left: seconds of a core that its tokens may still take.
    """

    progress: Progress
    position: int
    min_length: int
    drawn: _Drawn | None = None
    left: float = FREE_SECONDS


class GrammarRows:
    """For one thread. vocab_size: columns of the logits. clock: seconds that this thread has computed.

    A grammar can be fast at first and take seconds for a token later. So the time of a request's tokens is bounded: an
    answer whose grammar takes more ends where it is, and a warning says so.
    """

    def __init__(self, vocab_size: int, *, clock: Callable[[], float] = time.thread_time) -> None:
        from xgrammar import BatchGrammarMatcher

        self._clock = clock
        self._one_by_one = False
        self._num_words = -(-vocab_size // 32)
        self._vocab_size = vocab_size
        self._rows: dict[int, _Row] = {}
        threads = min(_THREADS, os.cpu_count() or 1)
        self._batch: BatchGrammarMatcher = BatchGrammarMatcher(max_threads=threads)
        self.num_masks = 0  # steps that had a row with a grammar

    def admit(self, admission: Admission) -> None:
        """A request with a grammar takes over a slot. The output that it has already is taken first."""
        request = admission.request
        grammar, form = request.grammar, request.sampling.structured_outputs
        assert isinstance(grammar, Grammar) and form is not None, "a request with a form was prepared"
        progress = Progress(grammar, request.stop_token_ids, form.starts_after)
        min_length = len(request.prompt) + request.sampling.min_tokens
        row = self._rows[admission.slot] = _Row(progress, len(admission.tokens), min_length)
        for token in admission.tokens[len(request.prompt) :].tolist():
            self._take(row, token)

    def forget(self, slot: int) -> None:
        """The slot has a request without a grammar. A slot that has no grammar is ignored."""
        self._rows.pop(slot, None)

    def masks(self, slots: IntArray, positions: IntArray) -> tuple[NDArray[np.int64], Words]:
        """Which tokens rows may take: the indices of these rows, int64 [G], and their masks, int32 [G, words]; all
        other rows may take any. Waits until the tokens that their slots drew before are known.

        slots, positions: int32 [S], as in `SamplingState.sample`.
        """
        self.num_masks += 1
        found = []
        for index, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
            row = self._rows.get(slot)
            if row is None or not self._follow(row, position):
                continue
            found.append((index, row))
        words = np.empty((len(found), self._num_words), np.int32)
        self._fill([row for _, row in found], words)
        for mine, (_, row) in zip(words, found):
            _end_in_time(mine, row)
        return np.array([index for index, _ in found], np.int64), words

    def drew(self, slots: IntArray, tokens: IntArray, copies: HostCopies) -> None:
        """Note what a step drew in `slots`, int32 [S]. tokens: int32 [S], to be read when `copies` are there."""
        for index, slot in enumerate(slots.tolist()):
            row = self._rows.get(slot)
            if row is not None:
                row.drawn = _Drawn(tokens, index, copies)
                row.position += 1

    def _take(self, row: _Row, token: int) -> None:
        """Tell a matcher a token, at the expense of its row."""
        if not row.progress.over:
            began = self._clock()
            row.progress.take([token])
            row.left += SECONDS_PER_TOKEN
            self._charge(row, began)

    def _charge(self, row: _Row, began: float) -> bool:
        """What came since `began` was for this row. Returns whether it was more than a token may take."""
        took = self._clock() - began
        row.left -= took
        if row.left < 0 and not row.progress.over:
            row.progress.over = True
            logger.warning("a grammar takes too much time for its tokens: the answer ends where it is")
        return took > SECONDS_PER_TOKEN

    def _follow(self, row: _Row, position: int) -> bool:
        """Bring a row to `position`. Returns whether its grammar, or `min_tokens`, says what comes there."""
        if row.position != position:  # a step on the way has failed, and its requests have ended with it
            return False
        if row.drawn is not None:
            self._take(row, row.drawn.read())
            row.drawn = None
        return row.progress.begun or position < row.min_length

    def _fill(self, rows: list[_Row], words: Words) -> None:
        """Several threads fill many masks, until this takes long: then one by one, each at the expense of its row."""
        at = [index for index, row in enumerate(rows) if row.progress.begun and not row.progress.over]
        bitmask = torch.from_numpy(words)
        if len(at) > _FEW and not self._one_by_one:
            began = time.perf_counter()
            self._batch.batch_fill_next_token_bitmask([rows[index].progress.matcher for index in at], bitmask, at)
            self._one_by_one = time.perf_counter() - began > _LONG
        else:
            self._one_by_one = False
            for index in at:
                began = self._clock()
                rows[index].progress.matcher.fill_next_token_bitmask(bitmask, index)
                self._one_by_one |= self._charge(rows[index], began)
        for mine, row in zip(words, rows, strict=True):
            if row.progress.over:
                only(mine, row.progress.stops)
            elif row.progress.begun:
                row.progress.keep_to_json(mine)
            else:
                mine[:] = -1


def _end_in_time(words: Words, row: _Row) -> None:
    """No stop token before `min_tokens`, unless the grammar allows nothing else. Where it allows nothing at all (a
    grammar without an end), the answer may stop."""
    if row.position < row.min_length:
        before = words.copy()
        clear(words, row.progress.stops)
        if not words.any():
            words[:] = before
    if not words.any():
        only(words, row.progress.stops)


def forbid(logits: Tensor, rows: NDArray[np.int64], words: Words) -> None:
    """Give tokens that `words` do not allow the logit -inf, in place. logits: float32 [S, V]; rows, words: as `masks`
    returns them."""
    if not len(rows):
        return
    if logits.device.type == "cpu" and logits.is_contiguous():
        from xgrammar import apply_token_bitmask_inplace

        mask = np.zeros((len(logits), words.shape[1]), np.int32)
        mask[rows] = words
        vocab_size = logits.shape[1]
        apply_token_bitmask_inplace(logits, torch.from_numpy(mask), vocab_size=vocab_size, indices=rows.tolist())
        return
    device = logits.device
    bits = torch.arange(32, dtype=torch.int32, device=device)
    allowed = (to_device(words, device)[:, :, None] >> bits) & 1
    forbidden = allowed.view(len(rows), -1)[:, : logits.shape[1]] == 0
    at = to_device(rows, device)
    logits[at] = logits[at].masked_fill(forbidden, float("-inf"))
