"""A device that remembers what it stored: it fails the test when a request would read another's KV.

The "KV" of a position is a digest of the salt and all tokens up to there, so a place holds the right value only if
the whole prefix is right. Tokens are drawn from the digest: an answer depends on its prompt alone, whatever the
batching, and `answer_of` computes it without any scheduler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from headway.config import SchedulerConfig
from headway.request import FinishReason, Request
from headway.scheduler import Batch, StepResult

VOCAB = 50
EOS = 1


def _extend(digest: bytes, token: int) -> bytes:
    return hashlib.blake2b(digest + int(token).to_bytes(4, "little"), digest_size=8).digest()


def _root(request: Request) -> bytes:
    return repr(request.cache_salt).encode()


def _sample(digest: bytes) -> int:
    return int.from_bytes(digest, "little") % VOCAB


def answer_of(request: Request) -> tuple[list[int], FinishReason]:
    """What the request must get if nothing is done to it from outside."""
    digest = _root(request)
    for token in request.prompt.tolist():
        digest = _extend(digest, token)
    tokens: list[int] = []
    while True:
        tokens.append(_sample(digest))
        if tokens[-1] in request.stop_token_ids and len(tokens) >= request.sampling.min_tokens:
            return tokens, FinishReason.STOP
        if len(tokens) == request.max_tokens:
            return tokens, FinishReason.LENGTH
        digest = _extend(digest, tokens[-1])


class OracleDevice:
    """Runs batches as an executor would, from batches alone, and checks every place it reads."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._size = config.block_size
        self._budget = config.max_num_batched_tokens
        self._tables = np.zeros((config.max_num_seqs, config.blocks_per_request), dtype=np.int64)
        self._kv: dict[int, bytes] = {}
        self._requests: dict[int, Request] = {}
        self._tokens: dict[int, list[int]] = {}
        self._last_step = 0

    def run(self, batch: Batch) -> StepResult:
        """Compute one step; what it stores is there for the steps after it."""
        assert batch.step_id > self._last_step, "steps must come in order"
        self._last_step = batch.step_id
        assert batch.num_tokens == int(batch.num_new_tokens.sum()) <= self._budget
        assert len(set(batch.slots.tolist())) == len(batch), "a slot has two rows"
        self._tables[batch.table_slots, batch.table_columns] = batch.table_blocks
        for admission in batch.admissions:
            self._requests[admission.slot] = admission.request
            self._tokens[admission.slot] = admission.tokens.tolist()
        sampled = [token for row in range(len(batch)) if (token := self._run_row(batch, row)) is not None]
        return StepResult(batch.step_id, np.array(sampled, dtype=np.int32))

    def _run_row(self, batch: Batch, row: int) -> int | None:
        slot, start, count = (int(a[row]) for a in (batch.slots, batch.positions, batch.num_new_tokens))
        tokens = self._tokens[slot]
        assert count == 1 or row >= batch.num_decodes
        assert start + count <= len(tokens), "asked to compute tokens that are not known"
        digest = _root(self._requests[slot])
        for position in range(start):
            digest = _extend(digest, tokens[position])
            assert self._kv.get(self._place(slot, position)) == digest, (
                f"slot {slot} would read foreign or missing KV at position {position}"
            )
        for position in range(start, start + count):
            digest = _extend(digest, tokens[position])
            self._kv[self._place(slot, position)] = digest
        if not batch.samples[row]:
            return None
        assert start + count == len(tokens), "sampled before all known tokens were computed"
        tokens.append(_sample(digest))
        return tokens[-1]

    def _place(self, slot: int, position: int) -> int:
        block = int(self._tables[slot, position // self._size])
        assert block > 0, "the padding block is nobody's"
        return block * self._size + position % self._size


def prompt_of(tokens: Sequence[int]) -> np.ndarray:
    """int32, read-only, as the door packs it."""
    array = np.array(tokens, dtype=np.int32)
    array.flags.writeable = False
    return array
