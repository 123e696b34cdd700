"""What the scheduling thread knows of one request of FastDeploy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headway.request import FinishReason
from headway.request import Request as CoreRequest


@dataclass(slots=True, eq=False)
class Record:
    """One request. Owned by the scheduling thread; other threads make it, and read `request` and `core`.

    request: FastDeploy's Request. Its `output_token_ids` grows on the thread of FastDeploy's token processor; this is
        how output tokens come to the scheduler.
    core: Headway's record of it.
    slot: where the core has seated it; None: it has no slot.
    table: FastDeploy's ids of its blocks, in order. num_places: tokens that fit into them.
    num_told: output tokens that the core knows.
    num_sent: leading tokens whose KV is in the blocks, or that the worker was told to compute in this slot.
    heard: the worker was told of it in this slot.
    free: the worker has all known tokens and decodes on its own.
    muted: it is to end. What the core counts on is still computed, but no token is sampled.
    answered: FastDeploy has answered the client; nothing is to be said any more.
    aborting: FastDeploy wants it ended, and has not answered the client.
    reserved: P and D: it has slot and blocks, and has not started.
    sending: P: its prompt is computed, and FastDeploy sends it to D.
    end: why the core has ended it; None: it has not.
    """

    request: Any
    core: CoreRequest
    slot: int | None = None
    table: list[int] = field(default_factory=list)
    num_places: int = 0
    num_told: int = 0
    num_sent: int = 0
    heard: bool = False
    free: bool = False
    muted: bool = False
    answered: bool = False
    aborting: bool = False
    reserved: bool = False
    sending: bool = False
    end: FinishReason | None = None

    @property
    def request_id(self) -> str:
        """The id of the request."""
        return str(self.core.request_id)

    @property
    def num_outputs(self) -> int:
        """Output tokens that have come from the worker."""
        return len(self.request.output_token_ids)

    @property
    def num_known(self) -> int:
        """Tokens of prompt and output that have come."""
        return len(self.core.prompt) + self.num_outputs

    @property
    def is_void(self) -> bool:
        """Whether nothing more is expected of the worker for it."""
        return self.muted or self.end is not None

    def leave_slot(self) -> None:
        """It has lost its slot, or has ended."""
        self.slot = None
        self.heard = self.free = False
