"""A worker that behaves as vLLM's model runner V1 or V2 and computes no model.

The next token is a function of all tokens before it and of the request's seed. Each place of the KV cache holds the
digest of the tokens up to there; a step checks every place that it reads.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from vllm.v1.core.sched.output import GrammarOutput, NewRequestData, SchedulerOutput
from vllm.v1.outputs import LogprobsLists, LogprobsTensors, ModelRunnerOutput

FIRST_TOKEN, NUM_TOKENS = 3, 64  # of the vocabulary: 3 to 66
_PRIME = (1 << 61) - 1


def digest(before: int, token: int) -> int:
    return (before * 1_000_003 + token * 7_919 + 12_345) % _PRIME


def digest_of(tokens: Iterable[int], before: int = 0) -> int:
    for token in tokens:
        before = digest(before, token)
    return before


def next_token(history: int, sampling: Any, num_output: int, allowed: Sequence[int] | None) -> int:
    """The token after a history, as a sampler would choose it: no stop token before min_tokens, none that the grammar
    forbids."""
    masked = {*(sampling.stop_token_ids or ()), sampling.eos_token_id} if num_output < sampling.min_tokens else ()
    choices = allowed if allowed is not None else range(FIRST_TOKEN, FIRST_TOKEN + NUM_TOKENS)
    choices = [token for token in choices if token not in masked]
    return choices[digest(history, sampling.seed or 0) % len(choices)]


@dataclass
class Known:
    """What the worker keeps of a request. digests: of the tokens up to each place, as far as needed."""

    new: NewRequestData
    output: list[int]
    blocks: list[int]
    num_computed: int = 0
    digests: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.new.prompt_token_ids) + len(self.output)

    def keep_output(self, output: list[int]) -> None:
        """These are its output tokens."""
        num_prompt = len(self.new.prompt_token_ids)
        same = next(
            (i for i, (a, b) in enumerate(zip(output, self.output)) if a != b), min(len(output), len(self.output))
        )
        self.output = output
        del self.digests[num_prompt + same :]

    def digests_up_to(self, end: int) -> list[int]:
        if len(self.digests) < end:
            tokens = self.new.prompt_token_ids + self.output
            for token in tokens[len(self.digests) : end]:
                self.digests.append(digest(self.digests[-1] if self.digests else 0, token))
        return self.digests


@dataclass
class Forward:
    """A step that is computed and not yet sampled: request ids in the order of the result, and for each the digest of
    its history, or None after a chunk that is not the last."""

    names: list[str]
    histories: list[int | None]
    known: list[Known]


class ImitatedWorker:
    def __init__(self, *, runner: int, asynchronous: bool, block_size: int, max_num_seqs: int, seed: int = 0) -> None:
        self._runner = runner
        self._asynchronous = asynchronous
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._dice = random.Random(seed)
        self._known: dict[str, Known] = {}
        self._batch: dict[str, None] = {}  # the persistent batch of V1
        self._kv: dict[tuple[int, int], int] = {}
        self.num_computed_tokens = 0

    @property
    def num_known(self) -> int:
        return len(self._known)

    # -- the work order --------------------------------------------------------------------------------------------

    def execute(self, order: SchedulerOutput) -> Forward:
        """Take a work order, and compute it."""
        self._check_form(order)
        for name in order.finished_req_ids:
            self._known.pop(name, None)
            self._batch.pop(name, None)
        if self._runner == 2:
            for name in order.preempted_req_ids or ():
                assert self._known.pop(name, None) is not None or name in order.finished_req_ids, f"{name}: unknown"
        else:
            staying = order.num_scheduled_tokens.keys() - order.scheduled_cached_reqs.resumed_req_ids
            self._batch = {name: None for name in self._batch if name in staying}
        for new in order.scheduled_new_reqs:
            self._add(new)
        self._update(order)
        return self._forward(order)

    def _check_form(self, order: SchedulerOutput) -> None:
        cached, counts = order.scheduled_cached_reqs, order.num_scheduled_tokens
        names = [new.req_id for new in order.scheduled_new_reqs] + cached.req_ids
        assert len(set(names)) == len(names), "a request is named twice"
        assert set(names) == counts.keys(), "requests and counts differ"
        assert sum(counts.values()) == order.total_num_scheduled_tokens, "the total is wrong"
        numbers = [*counts.values(), *cached.num_computed_tokens, *cached.num_output_tokens]
        for blocks in [new.block_ids for new in order.scheduled_new_reqs] + cached.new_block_ids:
            numbers += blocks[0] if blocks is not None else ()
        assert all(type(number) is int for number in numbers), "a number is not Python's"

    def _add(self, new: NewRequestData) -> None:
        assert new.req_id not in self._known, f"{new.req_id} is new, and known already"
        tokens = new.prompt_token_ids
        if self._runner == 2:
            assert new.prefill_token_ids is not None, "V2 takes all tokens from here"
            tokens = new.prefill_token_ids
            assert tokens[: len(new.prompt_token_ids)] == new.prompt_token_ids, "these are other tokens"
        output = list(tokens[len(new.prompt_token_ids) :])
        self._known[new.req_id] = Known(new, output, new.block_ids[0], new.num_computed_tokens)
        self._batch[new.req_id] = None
        assert self._runner == 1 or len(self._known) <= self._max_num_seqs, "V2 has no place for one more request"

    def _update(self, order: SchedulerOutput) -> None:
        cached = order.scheduled_cached_reqs
        assert not (self._runner == 2 and cached.resumed_req_ids), "V2 knows no request that comes back"
        for name, num_computed, num_output, blocks in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, cached.new_block_ids, strict=True
        ):
            known = self._known[name]
            known.num_computed = num_computed
            if num_output < len(known.output):
                assert self._runner == 1, f"{name}: V2 never takes tokens back"
                known.keep_output(known.output[:num_output])
            if name in cached.resumed_req_ids:
                assert name not in self._batch and blocks is not None
                known.blocks = blocks[0]
            elif blocks is not None:
                known.blocks.extend(blocks[0])  # in place, as the runners do
            if self._runner == 1 and name not in self._batch:
                if self._asynchronous and num_output:
                    known.keep_output(cached.all_token_ids[name][-num_output:])
                self._batch[name] = None
            assert len(known.output) == num_output, f"{name}: {len(known.output)} output tokens, not {num_output}"

    # -- computing -------------------------------------------------------------------------------------------------

    def _forward(self, order: SchedulerOutput) -> Forward:
        names = list(order.num_scheduled_tokens)
        if self._dice.random() < 0.2:
            self._dice.shuffle(names)  # runners order their batch as they like
        else:
            names.sort()
        written: dict[tuple[int, int], int] = {}
        read: list[tuple[str, int, tuple[int, int], int]] = []
        histories: list[int | None] = []
        for name in names:
            known, count = self._known[name], order.num_scheduled_tokens[name]
            start, end = known.num_computed, known.num_computed + count
            assert end <= known.num_tokens, f"{name}: computes {start} to {end} of {known.num_tokens} tokens"
            assert (end - 1) // self._block_size < len(known.blocks), f"{name}: no block for place {end - 1}"
            for place, history in enumerate(known.digests_up_to(end)[:end]):
                where = (known.blocks[place // self._block_size], place % self._block_size)
                assert where[0], f"{name}: place {place} is in the padding block"
                if place < start:
                    read.append((name, place, where, history))
                else:
                    assert written.setdefault(where, history) == history, f"{where} is written by two requests"
            histories.append(known.digests[end - 1] if end == known.num_tokens else None)
            self.num_computed_tokens += count
        self._kv.update(written)
        for name, place, where, history in read:
            assert self._kv.get(where) == history, f"{name}: wrong KV at place {place}"
        return Forward(names, histories, [self._known[name] for name in names])

    def sample(self, forward: Forward, masks: GrammarOutput | None) -> ModelRunnerOutput:
        """The result of a step."""
        allowed = allowed_tokens(masks)
        sampled: list[list[int]] = []
        prompt_logprobs: dict[str, LogprobsTensors | None] = {}
        for name, history, known in zip(forward.names, forward.histories, forward.known, strict=True):
            sampling = known.new.sampling_params
            if history is None:
                sampled.append([])
                continue
            if sampling.prompt_logprobs is not None and not known.output:
                prompt_logprobs[name] = _prompt_logprobs(known.new.prompt_token_ids)
            token = next_token(history, sampling, len(known.output), allowed.get(name))
            known.output.append(token)
            sampled.append([token])
        wanting = any(known.new.sampling_params.logprobs is not None for known in forward.known)
        return ModelRunnerOutput(
            req_ids=forward.names,
            req_id_to_index={name: i for i, name in enumerate(forward.names)},
            sampled_token_ids=sampled,
            logprobs=_logprobs(sampled) if wanting else None,
            prompt_logprobs_dict=prompt_logprobs,
        )


def allowed_tokens(masks: GrammarOutput | None) -> dict[str, list[int]]:
    """The tokens that each request with a grammar may get."""
    if masks is None:
        return {}
    bits = np.unpackbits(masks.grammar_bitmask.view(np.uint8), axis=1, bitorder="little")
    names = masks.structured_output_request_ids
    return {name: np.flatnonzero(row).tolist() for name, row in zip(names, bits, strict=True)}


def _logprobs(sampled: list[list[int]]) -> LogprobsLists:
    ids = np.array([[*tokens, 1][:1] * 2 for tokens in sampled], dtype=np.int32)
    return LogprobsLists(ids, -ids.astype(np.float32), np.ones(len(sampled), dtype=np.int32))


def _prompt_logprobs(prompt: list[int]) -> LogprobsTensors:
    ids = torch.tensor(prompt[1:], dtype=torch.int32).reshape(-1, 1)
    return LogprobsTensors(ids, -ids.float(), torch.ones(len(ids), dtype=torch.int32))
