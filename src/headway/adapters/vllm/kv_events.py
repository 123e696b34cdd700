"""KV events: what the core tells of its prefix cache, as vLLM's events, through vLLM's own publisher.

vLLM's block hashes are not computed at all: the digests are Headway's, which are as strong (docs/kv-events.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from vllm.distributed.kv_events import (
    MEDIUM_GPU,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventPublisherFactory,
    KVCacheEvent,
    KVEventBatch,
)
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash
from vllm.v1.kv_cache_interface import KVCacheSpecKind

from headway.engine.findable_blocks import BlocksRemoved, BlocksStored, Change, FindableBlocks
from headway.scheduler import Scheduler

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.config.kv_events import KVEventsConfig

GROUP = 0  # the only group of KV caches that is served


def keeps_kv_events(config: VllmConfig) -> bool:
    """Whether vLLM is to publish KV events."""
    wanted = config.kv_events_config
    return (
        wanted is not None and bool(wanted.enable_kv_cache_events) and bool(config.cache_config.enable_prefix_caching)
    )


class KVEvents:
    """Publishes what happens to the prefix cache, once a step."""

    def __init__(self, core: Scheduler, config: VllmConfig) -> None:
        self._core = core
        self._block_size = core.config.block_size
        self._blocks = FindableBlocks(self._block_size)
        self._publisher = EventPublisherFactory.create(
            config.kv_events_config, config.parallel_config.data_parallel_index
        )

    def publish(self) -> None:
        """Publish what has happened since the last call."""
        events = [self._event(change) for change in self._blocks.apply(self._core.take_kv_events())]
        if events:
            self._publisher.publish(KVEventBatch(ts=time.time(), events=events))

    @property
    def publisher_config(self) -> KVEventsConfig | None:
        """How events are published, with what vLLM left open filled in."""
        return self._publisher.get_publisher_config()

    def shutdown(self) -> None:
        self._publisher.shutdown()

    def _event(self, change: Change) -> KVCacheEvent:
        if isinstance(change, BlocksStored):
            return BlockStored(
                block_hashes=_hashes(change.digests),
                parent_block_hash=None if change.parent is None else maybe_convert_block_hash(change.parent),
                token_ids=np.frombuffer(change.tokens, np.int32).tolist(),
                block_size=self._block_size,
                lora_id=None,
                medium=MEDIUM_GPU,
                lora_name=None,
                extra_keys=[extra or None for extra in change.extras],
                group_idx=GROUP,
                kv_cache_spec_kind=KVCacheSpecKind.FULL_ATTENTION.value,
            )
        if isinstance(change, BlocksRemoved):
            return BlockRemoved(block_hashes=_hashes(change.digests), medium=MEDIUM_GPU, group_idx=GROUP)
        return AllBlocksCleared()


def _hashes(digests: Iterable[bytes]) -> list[bytes | int]:
    return [maybe_convert_block_hash(digest) for digest in digests]
