"""The scheduler's own record of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.kvcache.node import Node
from headway.request import FinishReason, Request, RequestStatus
from headway.scheduler.state.slot_pool import SlotHandle


@dataclass(slots=True, eq=False)
class Entry:
    """A request between its acceptance and its end. Only the writer touches it.

    place_in_line: the order of service: (rank, order of arrival).
    limit: total tokens at which it ends by length; on a prefill engine one more than the prompt.
    tokens: int32; the known tokens when it gets a slot: the prompt, and the output so far after a preemption.
    node: the end of the part of its sequence that the prefix cache knows: published, or pending for a step in flight.
    media_keys: by column, what the images and videos in a block add to the key of that block.
    status: written by `Moves` alone.
    handle: its slot, while it has one.
    blocks_wanted: available blocks this request needs before admission is tried again. Ignored when the prefix cache
        has grown for it.
    num_matched: leading blocks up to `node`: those of the last lookup, and while the request prefills also its own; -1
        before the first lookup.
    next_key: the cache key of the following block; None until it is needed.
    num_bypassed: how many requests were admitted before it while it waited for blocks.
    computes_again: a failed step was to fill blocks that it shared; it has computed nothing since.
    sends: its KV goes to D once the prompt is computed. outcome: how it will end when that is done.
    pulls: the KV of its prompt shall come from P. lends: it shall go to D.
    keeps_blocks: its blocks were told to a connector; it takes no others that another request has computed.
    filled_from_outside: a connector may write to its blocks at any time, until it says that it has stopped.
    prompt_logprobs_from: the first position of its prompt whose log-probabilities, if it asks for these, no caller has.
    """

    request: Request
    place_in_line: tuple[float, int]
    limit: int
    tokens: NDArray[np.int32]
    node: Node
    media_keys: Mapping[int, bytes]
    status: RequestStatus
    handle: SlotHandle | None = None
    blocks_wanted: int = 0
    num_matched: int = -1
    next_key: bytes | None = None
    num_bypassed: int = 0
    num_preemptions: int = 0
    computes_again: bool = False
    sends: bool = False
    pulls: bool = False
    lends: bool = False
    keeps_blocks: bool = False
    filled_from_outside: bool = False
    outcome: FinishReason | None = None
    prompt_logprobs_from: int = 1

    @property
    def uid(self) -> int:
        """The uid of its request."""
        return self.request.uid

    @property
    def slot(self) -> int:
        """The slot it runs in."""
        assert self.handle is not None, f"request {self.request.request_id!r} has no slot"
        return self.handle.slot
