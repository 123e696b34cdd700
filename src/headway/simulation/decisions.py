"""A digest of all decisions of a core: runs with the same decisions have the same digest.

Only values count, in a fixed order: no name of a class, field or module, and no text of an error. So a stored digest
stays valid when code is moved or renamed, and differs as soon as one decision differs.
"""

from __future__ import annotations

import hashlib

import numpy as np

from headway.scheduler import AuditReport, Batch, Effects, Progress, Reservation


class Decisions:
    """Adds batches and effects to the digest, one by one."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)

    def hexdigest(self) -> str:
        """The digest so far: 16 hexadecimal digits."""
        return self._hash.hexdigest()

    def take_batch(self, batch: Batch) -> None:
        """Add a whole batch."""
        self._numbers("batch", batch.step_id, batch.num_decodes, batch.num_tokens)
        for array in (batch.slots, batch.positions, batch.num_new_tokens, batch.samples):
            self._array(array)
        for array in (batch.table_slots, batch.table_columns, batch.table_blocks):
            self._array(array)
        for admission in batch.admissions:
            self._numbers("admission", admission.slot, admission.request.uid, admission.num_cached_tokens)
            self._array(admission.tokens)
        for uid, span in batch.encode:
            self._numbers("encode", uid, span.start, span.length)
        for digest in batch.encoder_evicted:
            self._hash.update(digest)

    def take_effects(self, effects: Effects) -> None:
        """Add the effects of a message. For an error, only the fact that there is an error."""
        for uid, num_cached_tokens in effects.started:
            self._numbers("started", uid, num_cached_tokens)
        for prompts in effects.prompt_logprobs:
            self._array(prompts.uids)
            self._array(prompts.logprobs.starts)
            self._array(prompts.logprobs.counts)
        for outputs in effects.tokens:
            self._array(outputs.uids)
            self._array(outputs.tokens)
        for sending in effects.sending:
            self._numbers("sending", sending.uid, sending.num_tokens, sending.token)
            self._array(sending.blocks)
        for end in effects.ended:
            self._numbers("ended", end.uid, end.reason.value, end.stop_token, end.error is not None)
        for pull in effects.pulls:
            self._numbers("pull", pull.request.uid, pull.num_cached_tokens)
            self._array(pull.blocks)
        for lending in effects.lending:
            self._numbers("lending", lending.uid, lending.num_tokens, lending.generation, lending.token)
            self._array(lending.blocks)
        for uid in (*effects.stopped_pulls, *effects.revoked):
            self._numbers("over", uid)
        for waiting in effects.quarantined:
            self._numbers("quarantined", waiting.slot, waiting.generation, waiting.uid)
        for request in effects.jobs:
            self._numbers("job", request.uid)
        for reply in effects.awaited:
            self.take_answer(reply, None)

    def take_answer(self, reply: int, value: object) -> None:
        """What a query was answered with."""
        match value:
            case Reservation():
                self._numbers("reservation", reply, value.uid, value.slot, value.num_cached_tokens, value.after_step)
                self._array(value.blocks)
            case Progress():
                tokens = (value.num_prompt_tokens, value.num_output_tokens, value.num_computed_tokens)
                held = (value.num_blocks, value.num_preemptions)
                self._numbers("progress", reply, value.uid, value.status.name, *tokens, *held)
            case AuditReport():
                blocks = (value.num_blocks_free, value.num_blocks_evictable, value.num_blocks_referenced)
                owners = [(owner.slot, owner.num_blocks) for owner in value.owners]
                self._numbers("audit", reply, value.ok, value.num_requests, value.num_leases, *blocks, owners)
            case _:
                self._numbers("answer", reply, value)

    def _numbers(self, what: str, *values: object) -> None:
        self._hash.update(f"{what}{values}".encode())

    def _array(self, array: np.ndarray) -> None:
        self._hash.update(f"{array.dtype.str}{array.shape}".encode())
        self._hash.update(array.tobytes())
