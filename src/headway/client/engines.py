"""What an API process sees of its engines, whether it has one (`EngineClient`) or several (`EngineClients`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from headway.client.kv_sources import FindSource
from headway.client.open_requests import Observer
from headway.client.pending import Pending
from headway.client.prompt_encoder import PromptEncoder
from headway.config import PauseMode, SchedulerConfig
from headway.model_files import ModelFiles
from headway.placement import Placement
from headway.request import NewRequest
from headway.wire.to_client import AuditReport, Snapshot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from headway.client.engine_client import EngineClient

Observe = Callable[[str], Observer]
"""Makes the observer of an engine from its name."""


class Engines(Protocol):
    """One engine or several, of the same model and with the same limits. For one event loop.

    files, tokenizer, placement: of the model, and where it is computed. prompts: tokenises texts. dead: set when no
    engine is left that could be restarted.
    """

    files: ModelFiles
    tokenizer: PreTrainedTokenizerBase
    placement: Placement
    prompts: PromptEncoder
    dead: asyncio.Event

    @property
    def engines(self) -> Mapping[str, EngineClient]:
        """The engines that are here now, by name: a label of the metrics."""

    @property
    def config(self) -> SchedulerConfig:
        """The limits of each engine."""

    @property
    def capacity(self) -> int:
        """The most answers that one engine holds."""

    @property
    def snapshot(self) -> Snapshot:
        """The last numbers, summed over the engines. Counters never go back."""

    @property
    def num_open(self) -> int:
        """Pending requests that are neither complete nor closed."""

    @property
    def num_added(self) -> int:
        """Client requests that were given to an engine."""

    @property
    def retried(self) -> Mapping[str, int]:
        """Client requests that went on to another engine, by the engine that could not take them."""

    def observe(self, observe: Observe) -> None:
        """Each engine tells an observer of its own what it does."""

    def why_unhealthy(self) -> str | None:
        """Why no request can be served now, in one line; None if an engine is healthy."""

    def pack(self, token_ids: Sequence[int]) -> NDArray[np.int32]:
        """Token ids as `NewRequest.prompt`. Raises RequestError for an id that the model does not have."""

    def check_num_answers(self, num_prompts: int, n: int) -> None:
        """Raises RequestError for more answers than one engine can ever hold."""

    def submit(
        self,
        requests: Sequence[NewRequest],
        *,
        stream: bool,
        source: FindSource | None = None,
        shown: Sequence[str] = (),
    ) -> Pending:
        """See `EngineClient.submit`."""

    async def pause(self, mode: PauseMode = "abort", *, reset_prefix_cache: bool = True, timeout: float = 30.0) -> None:
        """See `EngineClient.pause`."""

    async def resume(self) -> None:
        """See `Manager.resume`."""

    async def is_paused(self) -> bool:
        """Whether new requests are refused because of a pause."""

    async def reset_prefix_cache(self, timeout: float = 5.0) -> int:
        """See `Manager.reset_prefix_cache`."""

    async def audit(self, timeout: float = 30.0) -> AuditReport:
        """See `Manager.audit`."""

    def fail_open(self) -> None:
        """End every pending request with ShuttingDownError, and abort its requests in the engines."""

    async def shutdown(self) -> None:
        """Fail all pending requests and calls, end the engines or leave them. Idempotent."""
