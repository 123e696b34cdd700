"""The rules of a request about single tokens: allowed ids, bad sequences, and a budget of thinking.

Two of the rules depend on the tokens drawn last. The host does not know these when it enqueues the next step, so a
window of the last tokens of each slot, and how long the slot thinks, are on the device. After a preemption both are
made anew from the tokens that the admission brings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from headway.executor.transfer import to_device
from headway.sampling import MAX_BAD_SEQUENCE
from headway.scheduler.batch import Admission, IntArray
from headway.thinking_tokens import MAX_MARK, ThinkingTokens

_WIDTH = max(MAX_BAD_SEQUENCE, MAX_MARK)  # tokens in a window, and in a pattern that is compared with windows
_NONE = -1  # in a window: the answer has no such token yet
_ANY = -2  # in a pattern: any token
_NEVER = -3  # in a pattern: no token
_START, _END, _BEGUN = 0, 1, 2  # rows of the patterns of a slot that thinks; from _BEGUN on: of `_BEGUN + k`, k tokens
_INFINITY = float("inf")


class TokenRules:
    """The rules of up to `max_num_seqs` slots. Used by one thread."""

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._ruled = np.zeros(max_num_seqs, np.bool_)
        self._watched = np.zeros(max_num_seqs, np.bool_)  # the slot has a window
        self._budgets = np.zeros(max_num_seqs, np.int32)  # tokens of thinking
        self._windows = torch.full((max_num_seqs, _WIDTH), _NONE, dtype=torch.int32, device=device)
        # Tokens of thinking so far; -1: the slot does not think.
        self._thought = torch.full((max_num_seqs,), -1, dtype=torch.int32, device=device)
        self._disallowed: dict[int, Tensor] = {}  # bool [V]
        # Patterns [K, _WIDTH] of all but the last token; last tokens [K].
        self._bad: dict[int, tuple[Tensor, Tensor]] = {}
        self._thinking: dict[int, tuple[Tensor, Tensor]] = {}  # patterns [_BEGUN + MAX_MARK, _WIDTH]; end [MAX_MARK]

    def admit(self, admission: Admission) -> None:
        """Take over a slot for a request."""
        slot, params, tokens = admission.slot, admission.request.sampling, admission.tokens
        for rules in (self._disallowed, self._bad, self._thinking):
            rules.pop(slot, None)
        if params.allowed_token_ids is not None:
            disallowed = torch.ones(self._vocab_size, dtype=torch.bool, device=self._device)
            ids = self._to_device(np.array(params.allowed_token_ids, np.int64))
            self._disallowed[slot] = disallowed.index_fill_(0, ids, False)
        if params.bad_token_sequences:
            self._bad[slot] = (
                self._to_device(np.stack([_pattern(sequence[:-1]) for sequence in params.bad_token_sequences])),
                self._to_device(np.array([sequence[-1] for sequence in params.bad_token_sequences], np.int64)),
            )
        prompt_length = len(admission.request.prompt)
        if params.thinking_token_budget is not None and params.thinking is not None:
            self._budgets[slot] = params.thinking_token_budget
            self._thinking[slot] = self._marks(params.thinking)
            self._thought[slot] = thought(tokens, prompt_length, params.thinking)
        self._watched[slot] = slot in self._bad or slot in self._thinking
        if self._watched[slot]:
            self._windows[slot] = self._to_device(_window(tokens[prompt_length:]))
        self._ruled[slot] = self._watched[slot] or slot in self._disallowed

    def edit(self, logits: Tensor, slots: IntArray) -> None:
        """Leave the logits of tokens that the rules allow, in place. Allowed ids and bad sequences give way where they
        would leave nothing. logits: float32 [S, V]; slots: int32 [S]."""
        if not self._ruled[slots].any():
            return
        for row, slot in enumerate(slots.tolist()):
            if (disallowed := self._disallowed.get(slot)) is not None:
                given = logits[row]
                allowed = given.masked_fill(disallowed, -_INFINITY)
                logits[row] = torch.where(allowed.amax() == -_INFINITY, given, allowed)
        bad = [row for row, slot in enumerate(slots.tolist()) if slot in self._bad]
        if bad:
            self._forbid(logits, slots, np.array(bad, np.int64))
        thinking = [row for row, slot in enumerate(slots.tolist()) if slot in self._thinking]
        if thinking:
            self._end_thinking(logits, slots, np.array(thinking, np.int64))

    def record(self, slots: IntArray, tokens: Tensor) -> None:
        """Add the tokens that were drawn. slots: int32 [S], all different; tokens: int64 [S]."""
        watched = np.flatnonzero(self._watched[slots])
        if not len(watched):
            return
        its_slots = self._to_device(slots[watched].astype(np.int64))
        drawn = tokens[self._to_device(watched)].to(torch.int32)
        windows = torch.cat([self._windows[its_slots][:, 1:], drawn[:, None]], dim=1)
        self._windows[its_slots] = windows
        thinking = np.array([at for at, row in enumerate(watched) if int(slots[row]) in self._thinking], np.int64)
        if len(thinking):
            self._think(slots[watched[thinking]], windows[self._to_device(thinking)])

    def _forbid(self, logits: Tensor, slots: IntArray, rows: NDArray[np.int64]) -> None:
        """The bad sequences of these rows. A row of which they would leave nothing stays as it is."""
        sequences = [self._bad[int(slots[row])] for row in rows]
        owners = self._to_device(np.repeat(np.arange(len(rows)), [len(last) for _, last in sequences]))
        windows = self._windows[self._to_device(slots[rows].astype(np.int64))]
        completes = _match(torch.cat([before for before, _ in sequences]), windows[owners])
        last = torch.cat([last for _, last in sequences])
        given = logits[self._to_device(rows)]
        ceilings = torch.where(completes, -_INFINITY, _INFINITY)
        left = given.view(-1).scatter_reduce(0, owners * given.shape[1] + last, ceilings, "amin").view_as(given)
        nothing = left.amax(dim=1, keepdim=True) == -_INFINITY
        logits[self._to_device(rows)] = torch.where(nothing, given, left)

    def _end_thinking(self, logits: Tensor, slots: IntArray, rows: NDArray[np.int64]) -> None:
        """Rows whose budget is spent: nothing but the next token of the end is left."""
        its_slots = self._to_device(slots[rows].astype(np.int64))
        spent = self._thought[its_slots] >= self._to_device(self._budgets[slots[rows]])
        marks = [self._thinking[int(slots[row])] for row in rows]
        begun = _match(torch.stack([patterns[_BEGUN:] for patterns, _ in marks]), self._windows[its_slots][:, None])
        written = (begun * torch.arange(MAX_MARK, device=self._device)).amax(dim=1, keepdim=True)
        following = torch.stack([end for _, end in marks]).gather(1, written)
        given = logits[self._to_device(rows)]
        only = torch.full_like(given, -_INFINITY).scatter_(1, following, 0.0)
        logits[self._to_device(rows)] = torch.where(spent[:, None], only, given)

    def _think(self, slots: IntArray, windows: Tensor) -> None:
        """Count the tokens that end these windows. slots: [P]; windows: [P, _WIDTH]."""
        its_slots = self._to_device(slots.astype(np.int64))
        patterns = torch.stack([self._thinking[slot][0][:_BEGUN] for slot in slots.tolist()])
        starts, ends = _match(patterns, windows[:, None]).unbind(dim=1)
        before = self._thought[its_slots]
        thought = torch.where(before >= 0, before + 1, before).masked_fill(ends, -1)
        self._thought[its_slots] = thought.masked_fill(starts & (thought < 0), 0)

    def _marks(self, thinking: ThinkingTokens) -> tuple[Tensor, Tensor]:
        """What `_thinking` has of a slot."""
        end = thinking.end
        patterns = np.full((_BEGUN + MAX_MARK, _WIDTH), _NEVER, np.int32)
        if thinking.start:
            patterns[_START] = _pattern(thinking.start)
        patterns[_END] = _pattern(end)
        for written in range(len(end)):
            patterns[_BEGUN + written] = _pattern(end[:written])
        tokens = np.zeros(MAX_MARK, np.int64)
        tokens[: len(end)] = end
        return self._to_device(patterns), self._to_device(tokens)

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return to_device(array, self._device)


def thought(tokens: IntArray, prompt_length: int, thinking: ThinkingTokens) -> int:
    """How many tokens of thinking these tokens, prompt and output, end with; -1: they do not end with thinking."""
    if not thinking.start:
        ends = _places(tokens[prompt_length:], thinking.end)
        return -1 if len(ends) else len(tokens) - prompt_length
    starts, ends = _places(tokens, thinking.start), _places(tokens, thinking.end)
    if len(ends):
        starts = starts[starts > ends[-1]]
    return len(tokens) - int(starts[0]) if len(starts) else -1


def _places(tokens: IntArray, mark: tuple[int, ...]) -> NDArray[np.int64]:
    """The positions after each place where the mark stands."""
    if len(tokens) < len(mark):
        return np.empty(0, np.int64)
    found = (sliding_window_view(tokens, len(mark)) == np.array(mark, np.int32)).all(axis=1)
    return np.flatnonzero(found) + len(mark)


def _pattern(tokens: tuple[int, ...]) -> IntArray:
    """The pattern of a window that ends with these tokens. int32 [_WIDTH]."""
    pattern = np.full(_WIDTH, _ANY, np.int32)
    if tokens:
        pattern[-len(tokens) :] = tokens
    return pattern


def _window(output: IntArray) -> IntArray:
    """The last tokens of an output. int32 [_WIDTH]."""
    window = np.full(_WIDTH, _NONE, np.int32)
    last = output[-_WIDTH:]
    window[_WIDTH - len(last) :] = last
    return window


def _match(patterns: Tensor, windows: Tensor) -> Tensor:
    """Whether each window has its pattern. int32 [..., _WIDTH] both; bool [...]."""
    return ((patterns == windows) | (patterns == _ANY)).all(dim=-1)
