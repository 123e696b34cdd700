"""What queries are answered with. (`ResetPrefixCache`: an int; `Audit`: an AuditReport.)"""

from __future__ import annotations

from dataclasses import dataclass

from headway.request import RequestStatus
from headway.scheduler.batch import IntArray


@dataclass(frozen=True, slots=True)
class Reservation:
    """A slot and blocks held for a request. blocks: int32, a copy; the first `num_cached_tokens` tokens are there.

    after_step: a step up to this one may still write to the blocks, if it is in flight. What comes from outside the
        device's stream of steps may be put there once they are answered for: when Snapshot.step_id - num_in_flight has
        reached it.
    """

    uid: int
    slot: int
    blocks: IntArray
    num_cached_tokens: int
    after_step: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is, in tokens. num_computed_tokens counts what is in flight, but for decodes
    with drafts: how far they get is not known yet.

    num_published_blocks: leading blocks of a request with a slot that are filled, and that the prefix cache knows: its
        own and shared ones.
    """

    uid: int
    request_id: str
    status: RequestStatus
    num_prompt_tokens: int
    num_output_tokens: int
    num_computed_tokens: int
    num_blocks: int
    num_preemptions: int
    num_published_blocks: int = 0
