"""The sampling parameters of each slot, and the token history that penalties need.

Parameters: host arrays with a row per slot, filled at admission. Histories: on the device, only for slots that use
penalties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headway.executor import sampler
from headway.executor.token_rules import TokenRules
from headway.executor.transfer import HostCopies, to_device
from headway.scheduler.batch import Admission, IntArray

if TYPE_CHECKING:
    from headway.executor.grammar_rows import GrammarRows

_GREEDY_BELOW = 1e-5  # a temperature that would overflow float32 logits


@dataclass(frozen=True, slots=True)
class Sampled:
    """The tokens of S sampling rows, int64 [S] on the device, and log-probabilities of `logprob_rows`, int64 [R]."""

    tokens: Tensor
    logprob_rows: NDArray[np.int64]
    logprobs: sampler.TokenLogprobs | None


class SamplingState:
    """Samples for up to `max_num_seqs` slots. engine_seed: for requests without a seed. Used by one thread."""

    def __init__(self, max_num_seqs: int, vocab_size: int, engine_seed: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._engine_seed = engine_seed
        self._device = device
        self._temperature = np.zeros(max_num_seqs, np.float32)
        self._top_k = np.zeros(max_num_seqs, np.int32)
        self._top_p = np.ones(max_num_seqs, np.float32)
        self._min_p = np.zeros(max_num_seqs, np.float32)
        self._seeds = np.zeros(max_num_seqs, np.uint64)
        self._num_logprobs = np.full(max_num_seqs, -1, np.int32)  # -1: none, not even of the sampled token
        self._min_length = np.zeros(max_num_seqs, np.int32)  # first position at which the slot may stop
        self._edited = np.zeros(max_num_seqs, np.bool_)  # the slot's logits are edited before the filters
        self._penalties = np.zeros((max_num_seqs, 3), np.float32)  # repetition, presence, frequency
        self._history_rows = np.full(max_num_seqs, -1, np.int64)
        self._biases: dict[int, tuple[Tensor, Tensor]] = {}
        self._stop_ids: dict[int, Tensor] = {}
        self._histories = _Histories(vocab_size, device)
        self._rules = TokenRules(max_num_seqs, vocab_size, device)
        self._has_grammar = np.zeros(max_num_seqs, np.bool_)
        self._grammars: GrammarRows | None = None  # made when the first grammar comes

    def admit(self, admission: Admission) -> None:
        """Take over a slot for a request. The door has checked that its token ids are in the vocabulary, those of
        `logit_bias` too. Only stop tokens may be outside; these never occur."""
        slot, request = admission.slot, admission.request
        params = request.sampling
        self._temperature[slot] = params.temperature
        self._top_k[slot] = max(params.top_k, 0)
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        seed = params.seed if params.seed is not None else sampler.derive_seed(self._engine_seed, request.uid)
        self._seeds[slot] = seed & (2**64 - 1)
        self._num_logprobs[slot] = -1 if params.logprobs is None else params.logprobs
        self._biases.pop(slot, None)
        if params.logit_bias:
            self._biases[slot] = (
                self._to_device(np.array(list(params.logit_bias), np.int64)),
                self._to_device(np.array(list(params.logit_bias.values()), np.float32)),
            )
        self._min_length[slot] = 0
        self._stop_ids.pop(slot, None)
        stop_ids = [token for token in request.stop_token_ids if 0 <= token < self._vocab_size]
        if params.min_tokens and stop_ids:
            self._min_length[slot] = len(request.prompt) + params.min_tokens
            self._stop_ids[slot] = self._to_device(np.array(stop_ids, np.int64))
        if self._history_rows[slot] >= 0:
            self._histories.release(int(self._history_rows[slot]))
            self._history_rows[slot] = -1
        penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        self._penalties[slot] = penalties
        penalised = penalties != (1.0, 0.0, 0.0)
        if penalised:
            self._history_rows[slot] = self._histories.acquire(admission.tokens, len(request.prompt))
        self._rules.admit(admission)
        self._edited[slot] = penalised or slot in self._biases or slot in self._stop_ids
        self._admit_grammar(admission)

    def sample(self, logits: Tensor, slots: IntArray, positions: IntArray) -> Sampled:
        """Choose the next token of S rows, and add it to the histories.

        logits: [S, V]; may be changed. slots: int32 [S], all different. positions: int32 [S], the positions of the
            tokens to choose.
        """
        logits = logits.float()
        num_logprobs = self._num_logprobs[slots]
        asked = np.flatnonzero(num_logprobs >= 0)
        # Logprobs report the output of the model before any edit.
        log_probs = logits[self._to_device(asked)].log_softmax(dim=1) if len(asked) else None
        if self._edited[slots].any():
            self._edit(logits, slots, positions)
        if self._has_grammar[slots].any():
            self._forbid(logits, slots, positions)
        self._rules.edit(logits, slots)  # last: of what is left
        temperature = self._temperature[slots]
        drawn = np.flatnonzero(temperature >= _GREEDY_BELOW)
        if len(drawn) < len(slots):
            tokens = sampler.most_likely(logits)
            if len(drawn):
                rows = self._to_device(drawn)
                tokens[rows] = self._draw(logits[rows], slots[drawn], positions[drawn])
        else:
            tokens = self._draw(logits, slots, positions)
        self._record(slots, tokens)
        if log_probs is None:
            return Sampled(tokens, asked, None)
        report = sampler.log_probabilities(log_probs, tokens[self._to_device(asked)], int(num_logprobs.max()))
        return Sampled(tokens, asked, report)

    def drew(self, slots: IntArray, tokens: IntArray, copies: HostCopies) -> None:
        """The tokens of `sample` are on their way to the host: int32 [S], to be read when `copies` are there."""
        if self._has_grammar[slots].any():
            assert self._grammars is not None, "a grammar came"
            self._grammars.drew(slots, tokens, copies)

    def _admit_grammar(self, admission: Admission) -> None:
        """The grammar of a request, or none: what the slot had before is forgotten."""
        slot = admission.slot
        self._has_grammar[slot] = admission.request.grammar is not None
        if self._has_grammar[slot]:
            if self._grammars is None:
                from headway.executor.grammar_rows import GrammarRows  # imports xgrammar, which few servers need

                self._grammars = GrammarRows(self._vocab_size)
            self._grammars.admit(admission)
        elif self._grammars is not None:
            self._grammars.forget(slot)

    def _forbid(self, logits: Tensor, slots: IntArray, positions: IntArray) -> None:
        from headway.executor.grammar_rows import forbid

        assert self._grammars is not None, "a grammar came"
        forbid(logits, *self._grammars.masks(slots, positions))

    def _draw(self, logits: Tensor, slots: IntArray, positions: IntArray) -> Tensor:
        temperature = self._to_device(self._temperature[slots])[:, None]
        filters = sampler.Filters(self._top_k[slots], self._top_p[slots], self._min_p[slots])
        return sampler.draw(logits / temperature, sampler.row_keys(self._seeds[slots], positions), filters)

    def _edit(self, logits: Tensor, slots: IntArray, positions: IntArray) -> None:
        """Logit bias, penalties, and the mask of `min_tokens`, in place."""
        for row in np.flatnonzero(self._edited[slots]):  # few slots have a bias or a minimum
            if (bias := self._biases.get(int(slots[row]))) is not None:
                logits[row].index_add_(0, *bias)
        history_rows = self._history_rows[slots]
        penalised = np.flatnonzero(history_rows >= 0)
        if len(penalised):
            rows = self._to_device(penalised)
            penalties = self._to_device(self._penalties[slots[penalised]])
            logits[rows] = self._histories.penalise(logits[rows], self._to_device(history_rows[penalised]), penalties)
        for row in np.flatnonzero((positions < self._min_length[slots]) & ~self._has_grammar[slots]):  # it has its own
            logits[row].index_fill_(0, self._stop_ids[int(slots[row])], float("-inf"))

    def _record(self, slots: IntArray, tokens: Tensor) -> None:
        history_rows = self._history_rows[slots]
        penalised = np.flatnonzero(history_rows >= 0)
        if len(penalised):
            self._histories.add(self._to_device(history_rows[penalised]), tokens[self._to_device(penalised)])
        self._rules.record(slots, tokens)

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return to_device(array, self._device)


class _Histories:
    """How often each token was generated, and whether it is in the prompt: a row of each per slot with penalties."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._free: list[int] = []

    def acquire(self, tokens: IntArray, num_prompt_tokens: int) -> int:
        """A row that holds the history of `tokens`: the prompt and the tokens generated so far."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        known = to_device(tokens.astype(np.int64), self._counts.device)
        prompt, output = known[:num_prompt_tokens], known[num_prompt_tokens:]
        self._in_prompt[row].zero_().index_fill_(0, prompt, True)
        self._counts[row].zero_().index_add_(0, output, torch.ones_like(output, dtype=torch.int32))
        return row

    def release(self, row: int) -> None:
        self._free.append(row)

    def add(self, rows: Tensor, tokens: Tensor) -> None:
        """Count one more generated token in each row. rows: int64 [P], all different; tokens: int64 [P]."""
        self._counts[rows, tokens] += 1

    def penalise(self, logits: Tensor, rows: Tensor, penalties: Tensor) -> Tensor:
        """logits: [P, V]; rows: int64 [P]; penalties: float32 [P, 3]: repetition, presence, frequency. Repetition
        counts prompt and output; presence and frequency count the output alone."""
        counts = self._counts[rows]
        generated = counts > 0
        repetition, presence, frequency = penalties[:, :, None].unbind(dim=1)
        weakened = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(generated | self._in_prompt[rows], weakened, logits)
        return logits - frequency * counts - presence * generated

    def _grow(self) -> None:
        old = len(self._counts)
        more = max(old, 4)
        self._counts = torch.cat([self._counts, self._counts.new_zeros(more, self._counts.shape[1])])
        self._in_prompt = torch.cat([self._in_prompt, self._in_prompt.new_zeros(more, self._in_prompt.shape[1])])
        self._free += range(old + more - 1, old - 1, -1)
