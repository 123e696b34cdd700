"""What FastDeploy asks its cache manager for: to start its processes, and to forget what is cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastdeploy.cache_manager.prefix_cache_manager import PrefixCacheManager


class CacheView(PrefixCacheManager):
    """FastDeploy's cache manager without its blocks, which Headway owns. It starts the processes that move KV between P
    and D, and holds their signals.

    forget: empties the prefix cache.
    """

    def __init__(
        self, config: Any, tensor_parallel_size: int, role: str, rank: int, forget: Callable[[], None]
    ) -> None:
        super().__init__(config, tensor_parallel_size, role, rank)
        self._forget = forget

    def reset(self, wait_for_tasks_done: bool = False) -> None:
        """Forget what is cached. The engine is paused and empty."""
        self._forget()
