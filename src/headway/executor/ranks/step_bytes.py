"""A batch as bytes, for the ranks that do not sample: msgpack, arrays as the raw bytes of their memory.

Of a request they need its tokens, and which positions of its prompt are judged: the logits of these are gathered from
all ranks. How a request samples is known to rank 0 alone.
"""

from __future__ import annotations

import msgspec
import numpy as np

from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler.batch import Admission, Batch


class _Admission(msgspec.Struct, array_like=True):
    slot: int
    tokens: bytes
    num_cached_tokens: int
    num_prompt_tokens: int
    prompt_logprobs: int | None
    prompt_logprobs_from: int


class _Step(msgspec.Struct, array_like=True):
    """The fields of `Batch` that an executor reads; int32 but for `samples`, which is bool."""

    step_id: int
    num_decodes: int
    num_tokens: int
    slots: bytes
    positions: bytes
    num_new_tokens: bytes
    samples: bytes
    table_slots: bytes
    table_columns: bytes
    table_blocks: bytes
    admissions: list[_Admission]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Step)


def step_bytes(batch: Batch) -> bytes:
    """What a rank needs of `batch`."""
    return _encoder.encode(
        _Step(
            batch.step_id,
            batch.num_decodes,
            batch.num_tokens,
            batch.slots.tobytes(),
            batch.positions.tobytes(),
            batch.num_new_tokens.tobytes(),
            batch.samples.tobytes(),
            batch.table_slots.tobytes(),
            batch.table_columns.tobytes(),
            batch.table_blocks.tobytes(),
            [
                _Admission(
                    one.slot,
                    one.tokens.tobytes(),
                    one.num_cached_tokens,
                    len(one.request.prompt),
                    one.request.sampling.prompt_logprobs,
                    one.prompt_logprobs_from,
                )
                for one in batch.admissions
            ],
        )
    )


def step_of(data: bytes) -> Batch:
    """The batch in `data`, from `step_bytes`. Its requests sample greedily; their other fields are made up."""
    step = _decoder.decode(data)

    def ints(part: bytes) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return np.frombuffer(part, np.int32)

    return Batch(
        step_id=step.step_id,
        num_decodes=step.num_decodes,
        num_tokens=step.num_tokens,
        slots=ints(step.slots),
        positions=ints(step.positions),
        num_new_tokens=ints(step.num_new_tokens),
        samples=np.frombuffer(step.samples, np.bool_),
        table_slots=ints(step.table_slots),
        table_columns=ints(step.table_columns),
        table_blocks=ints(step.table_blocks),
        admissions=tuple(_admission(one) for one in step.admissions),
    )


def _admission(one: _Admission) -> Admission:
    tokens = np.frombuffer(one.tokens, np.int32)
    request = Request(
        uid=0,
        request_id="",
        prompt=tokens[: one.num_prompt_tokens],
        sampling=SamplingParams(temperature=0, prompt_logprobs=one.prompt_logprobs),
        max_tokens=1,
    )
    return Admission(one.slot, request, tokens, one.num_cached_tokens, one.prompt_logprobs_from)
