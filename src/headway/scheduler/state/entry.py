"""The scheduler's own record of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.kvcache.prefix import Node
from headway.request import FinishReason, Request, RequestStatus
from headway.scheduler.state.slot_pool import SlotHandle


@dataclass(slots=True, eq=False)
class Entry:
    """A request between its acceptance and its end. Only the writer touches it.

    place_in_line: sorts requests by who is served first: (rank, order of arrival).
    limit: total tokens at which it ends by length; on a prefill instance that is one after the prompt.
    tokens: int32; all that is known when it gets a slot: the prompt, and the output so far after a preemption.
    node: the end of the part of its sequence that is published to the prefix cache.
    media_keys: what the images and videos in a block add to the key of that block, by column.
    handle: its slot, while it has one.
    blocks_wanted: blocks that were lacking when admission was last tried; not worth another look before they are there,
        or the cache has more of it. num_matched: leading blocks that were cached then, up to `node`; of one that was
        preempted, those it had published. -1: nobody has looked yet. sought: the key of the block that comes after
        those; None where it has not been made yet.
    num_bypassed: how often another was admitted before it, while it waited for blocks.
    sends: its KV goes to D once the prompt is computed. outcome: why it will end when that is done.
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
    sought: bytes | None = None
    num_bypassed: int = 0
    num_preemptions: int = 0
    sends: bool = False
    outcome: FinishReason | None = None

    @property
    def uid(self) -> int:
        """The request's."""
        return self.request.uid

    @property
    def slot(self) -> int:
        """The slot it runs in."""
        assert self.handle is not None, f"request {self.request.request_id!r} has no slot"
        return self.handle.slot
