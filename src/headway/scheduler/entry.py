"""The scheduler's own record of a request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.kvcache.prefix import Node
from headway.request import Request, RequestStatus
from headway.scheduler.slots import SlotHandle


@dataclass(slots=True, eq=False)
class Entry:
    """A request between its acceptance and its end. Only the writer touches it.

    tokens: int32; all that is known when it gets a slot: the prompt, and the output so far after a preemption.
    node: the end of the part of its sequence that is published to the prefix cache.
    handle: its slot, while it has one.
    blocks_wanted: blocks that were lacking when admission was last tried; not worth another look before they are there.
    """

    request: Request
    seniority: int
    tokens: NDArray[np.int32]
    node: Node
    status: RequestStatus = RequestStatus.WAITING
    handle: SlotHandle | None = None
    blocks_wanted: int = 0

    @property
    def limit(self) -> int:
        """Total tokens at which it ends by length."""
        return len(self.request.prompt) + self.request.max_tokens

    @property
    def slot(self) -> int:
        """The slot it runs in."""
        assert self.handle is not None, f"request {self.request.request_id!r} has no slot"
        return self.handle.slot

    @property
    def place_in_line(self) -> tuple[int, int]:
        """Sorts requests by who is served first."""
        return self.request.priority, self.seniority
